//! Data sets for fine-tuning GLM4V
