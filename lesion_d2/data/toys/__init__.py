"""The toy data sets of Retina U-Net (Jaeger et al., arXiv:1811.08661, section 4.6)."""
