"""Rules for annotations, volumes, volume sets and splits."""
