"""Trains an LSTM to read handwritten digits in several processes, and goes on where it was if one of them dies.

    torchrun --standalone --nproc-per-node 2 --max-restarts 3 examples/torch_ddp.py

torchrun starts all processes again when one has died; each then begins with the last checkpoint. The gradients are
those of one process on the whole batch, so that `python examples/torch_ddp.py` alone learns the same.
"""

import argparse
import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import fastlstm.torch

PIXELS, HIDDEN, DIGITS, BATCH = 8, 64, 10, 64


class Reader(nn.Module):
    """Reads an image [B,8,8] row by row; the last state says which digit it was."""

    def __init__(self):
        super().__init__()
        self.lstm = fastlstm.torch.LSTM(PIXELS, HIDDEN, batch_first=True, forget_bias=1.0)
        self.linear = nn.Linear(HIDDEN, DIGITS)

    def forward(self, images):
        _, (h_n, _) = self.lstm(images)
        return self.linear(h_n[0])


def load_data():
    """Two datasets of images [8,8] from 0 to 1 and their digits: to learn from, and to test with."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images / 16, dtype=torch.float32), torch.tensor(digits.target)
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    return TensorDataset(parts[0], parts[2]), TensorDataset(parts[1], parts[3])


def join():
    """As `dist.init_process_group("gloo")`, but blind to addresses that are left in the store from before a restart."""
    env = os.environ
    store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False)  # torchrun itself has it
    store = dist.PrefixStore(f"start {env['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group("gloo", store=store, rank=int(env["RANK"]), world_size=int(env["WORLD_SIZE"]))


def train_epoch(model, optimizer, loader):
    for images, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()  # the processes' gradients meet here
        optimizer.step()


def save(path, **parts):
    """A checkpoint that is whole or not there."""
    torch.save(parts, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def main(checkpoint, epochs, kill_in_epoch=None):
    """The accuracy on the test set."""
    together = dist.is_torchelastic_launched()
    if together:
        join()
    rank, processes = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    torch.manual_seed(0)
    reader = Reader()
    model = DistributedDataParallel(reader) if together else reader
    optimizer, first = torch.optim.Adam(model.parameters(), 3e-3, fused=True), 0
    if checkpoint.exists():
        parts = torch.load(checkpoint)
        reader.load_state_dict(parts["model"])
        optimizer.load_state_dict(parts["optimizer"])
        first = parts["epoch"] + 1
        print(f"process {rank} goes on with epoch {first}", flush=True)

    train, test = load_data()
    sampler = DistributedSampler(train, processes, rank, drop_last=True)
    loader = DataLoader(train, BATCH // processes, sampler=sampler, drop_last=True)
    for epoch in range(first, epochs):
        if epoch == kill_in_epoch and rank == processes - 1 and first == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        sampler.set_epoch(epoch)
        train_epoch(model, optimizer, loader)
        if rank == 0:
            save(checkpoint, model=reader.state_dict(), optimizer=optimizer.state_dict(), epoch=epoch)
        if together:
            dist.barrier()
    with torch.no_grad():
        accuracy = float((reader(test.tensors[0]).argmax(1) == test.tensors[1]).float().mean())
    if rank == 0:
        print(f"{processes} processes read {accuracy:.1%} of the digits right", flush=True)
    if together:
        dist.destroy_process_group()
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=Path, default=Path("torch_ddp.pt"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--kill-in-epoch", type=int, help="have the last process die there, to see what happens")
    main(**vars(parser.parse_args()))
