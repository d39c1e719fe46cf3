"""Cross-validation: trains a model per fold, and evaluates all test sets together."""
