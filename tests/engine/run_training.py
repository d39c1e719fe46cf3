"""Trainings as ``train_net.py`` does them, and weights without one."""

import argparse
import os

from lesion_d2.engine import Trainer, load_config

import torch

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


def write_weights(args: argparse.Namespace, file: str | os.PathLike) -> None:
    """Write the weights of a model that has not been trained."""
    torch.save({"model": Trainer.build_model(load_config(args)).state_dict()}, file)
