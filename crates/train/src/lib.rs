//! Fine-tuning of GLM4V
