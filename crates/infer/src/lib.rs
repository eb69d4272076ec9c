//! Text generation with GLM4V
