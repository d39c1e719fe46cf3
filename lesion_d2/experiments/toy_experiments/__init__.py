"""Figure 5 of the Retina U-Net paper: six models, three tasks; ``__main__`` is the command."""
