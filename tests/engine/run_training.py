"""Trains as ``train_net.py`` does."""

import argparse

from lesion_d2.engine import Trainer

import train_net


def train(args: argparse.Namespace) -> Trainer:
    """Train by a command line, and go on if it says so; returns the trainer."""
    trainer = Trainer(train_net.setup(args))
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    return trainer


def losses_of(trainer: Trainer) -> list[float]:
    """The total loss of each iteration."""
    return [loss for loss, _ in trainer.storage.history("total_loss").values()]
