"""Command-line tools: ``python -m lesion_d2.tools`` lists them."""
