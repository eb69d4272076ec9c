//! The GLM4V network on Burn
