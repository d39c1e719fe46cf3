"""Table 1 of the Retina U-Net paper: five models in 3-D, 2Dc and 2-D; run by ``__main__``."""
