"""Synthetic CT of synthetic patients, with lesions whose masks are known."""
