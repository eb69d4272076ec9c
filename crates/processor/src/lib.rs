//! Chat template, tokenizer and images for GLM4V
