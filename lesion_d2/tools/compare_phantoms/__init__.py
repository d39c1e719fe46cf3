"""How phantoms look beside real CT: noise, edges, tissues and lesions, measured alike."""
