//! Hugging Face folders to and from GLM4V modules
