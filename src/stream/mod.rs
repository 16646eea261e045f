//! The pipeline's change stream: reads transactions, folds their changes, has them applied exactly once.

pub mod fold;
