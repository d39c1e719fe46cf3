"""Compares phantoms with real CT: noise, edges, tissues and lesions."""
