"""Several processes that train one model: who is who, what they tell each other, and which strategies start them.

Every process has the whole model and sees the whole data; a step's batch is shared out
(:class:`~cfmvc_scvi._types.Part`) and Lightning averages the gradients. All other words between the processes go
through a group of their own on the CPU, in which waiting has no end while the others live.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from scvi.train import SaveCheckpoint
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from cfmvc_scvi._compat import common_store, start_method

T = TypeVar("T")

#: How long processes wait for one that lives: process 0 may calibrate or save for hours.
_PATIENCE = timedelta(days=7)
#: Cells of a batch that every process has at least.
_FEWEST_CELLS = 2


@dataclass
class _Here:
    """What this process remembers of the others."""

    world: Any = None
    words: Any = None
    interrupted: bool = False
    saved: dict[str, int] = field(default_factory=dict)


_here = _Here()

# ---- who is who -------------------------------------------------------------------------------------------------


def connected() -> bool:
    """Whether a training has connected this process with others."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def several() -> bool:
    """Whether there are other processes to talk to: not before the first training, nor after an interruption."""
    return connected() and not _here.interrupted


def is_first() -> bool:
    """Whether this process is number 0, the one that writes files; the only process is that too."""
    if connected():
        return distributed.get_rank() == 0
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return True
    own = ("RANK",) if "RANK" in os.environ else ("NODE_RANK", "LOCAL_RANK")  # torchrun's; Lightning's
    return all(int(os.environ.get(name, 0)) == 0 for name in own)


def let_go(trainer: Trainer) -> None:
    """Go on alone after Ctrl-C: end the copies that a fit runs in; other processes have ended, or know it."""
    _here.interrupted = _here.interrupted or connected()
    launcher = trainer.strategy.launcher
    if launcher is not None and makes_copies(trainer):
        launcher.kill(signal.SIGKILL)


# ---- what they tell each other ----------------------------------------------------------------------------------


def total(values: Tensor) -> Tensor:
    """Sum of a tensor over all processes, the same bits in each."""
    if several():
        values = values.clone()
        distributed.all_reduce(values)
    return values


def from_first(make: Callable[[], T]) -> T:
    """What process 0 makes, in all processes, which all have to call this; the others wait for it.

    Parameters
    ----------
    make
        Called in process 0 alone, and in a process without others.

    Raises
    ------
    RuntimeError
        In the other processes, where ``make`` raised an error in process 0; with its text.
    """
    if not several():
        return make()
    if is_first():
        try:
            made = make()
        except Exception as error:
            _broadcast((None, f"{type(error).__name__}: {error}"))
            raise
        _broadcast((made, None))
        return made
    made, failure = _broadcast(None)
    if failure is not None:
        raise RuntimeError(f"Process 0 failed, and this process ends with it: {failure}")
    return made


def _broadcast(said: Any) -> Any:
    words = [said]
    distributed.broadcast_object_list(words, src=0, group=_words(), device=torch.device("cpu"))
    return words[0]


def _words() -> Any:
    """The group for everything but gradients, made when it is first needed; all processes come here together."""
    world = distributed.group.WORLD
    if _here.world is not world:
        _here.world, _here.words = world, distributed.new_group(backend="gloo", timeout=_PATIENCE)
    return _here.words


def share_random_state(device: torch.device) -> None:
    """Give torch's generators, on the CPU and on the device of this process, the state they have in process 0."""
    if not several():
        return
    on_gpu = device.type == "cuda"
    cpu, gpu = from_first(lambda: (torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_gpu else None))
    torch.set_rng_state(cpu)
    if gpu is not None:
        torch.cuda.set_rng_state(gpu, device)


def keep_buffers(trainer: Trainer) -> None:
    """Spare every step the broadcast of the buffers, which are equal since DDP was set up and which no step changes."""
    wrapped = trainer.strategy.model
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.broadcast_buffers = False


def save_once(path: str | os.PathLike, write: Callable[[], None]) -> None:
    """Write files in process 0 alone; where the others call this too, they go on when the files are there.

    Process 0 waits for nobody, so it may also be the only one that calls.

    Parameters
    ----------
    path
        Where the files are; all processes say the same.
    write
        Writes them.

    Raises
    ------
    RuntimeError
        In the other processes, where process 0 could not write; with its text.
    """
    name = os.path.abspath(path)
    _here.saved[name] = _here.saved.get(name, 0) + 1
    key = f"cfmvc_scvi/{name}/{_here.saved[name]}"
    store = common_store() if connected() else None
    if is_first():
        try:
            write()
        except Exception as error:
            if store is not None:
                store.set(key, f"{type(error).__name__}: {error}")
            raise
        if store is not None:
            store.set(key, "")
    elif store is not None:
        failure = _answer(store, key, name)
        if failure:
            raise RuntimeError(f"Process 0 could not save {name!r}: {failure}")


def _answer(store: Any, key: str, name: str) -> str:
    """What process 0 says of its files; it may have ended since, and then the files themselves tell."""
    try:
        store.wait([key], _PATIENCE)
        return store.get(key).decode()
    except RuntimeError as error:
        return "" if Path(name).exists() else f"it ended before ({error})"


# ---- what starts them -------------------------------------------------------------------------------------------


def devices_of_launcher(devices: int | list[int] | str, num_nodes: int) -> tuple[int | list[int] | str, int]:
    """Devices per machine and machines: as given, or where nothing is given as ``torchrun`` says.

    Raises
    ------
    ValueError
        When ``torchrun`` started several processes, and one device is asked for: each would train a model of its own.
    """
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        return devices, num_nodes
    n, local = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if n == 1:
        return devices, num_nodes
    if devices == "auto":
        return local, n // local
    if str(devices) == "1" or (isinstance(devices, list) and len(devices) == 1):
        raise ValueError(
            f"`devices` is {devices!r}, but torchrun started {n} processes, and each would train a model of its own: "
            f"leave `devices` out, or pass `devices={local}, num_nodes={n // local}`; or start the script without "
            "torchrun."
        )
    return devices, num_nodes


def check_processes(trainer: Trainer, batch_size: int, n_train: int) -> None:
    """Raise where several processes were asked for that cannot train together.

    Parameters
    ----------
    trainer
        The trainer of a stage, before its fit.
    batch_size
        Cells per step of all processes.
    n_train
        Training cells.

    Raises
    ------
    ValueError
        For strategies other than DDP, GPUs in a notebook, scvi-tools' own checkpoints, and batches too small to be
        shared out.
    RuntimeError
        After an interruption that ended the other processes.
    """
    n, strategy = trainer.world_size, trainer.strategy
    if n == 1:
        return
    if not isinstance(strategy, DDPStrategy):
        raise ValueError(
            f"`strategy` is {type(strategy).__name__}; several processes train by Lightning's DDP: leave `strategy` "
            "out, or pass 'ddp' in a script and 'ddp_notebook' in a notebook."
        )
    if makes_copies(trainer) and strategy.root_device.type != "cpu":
        raise ValueError(
            f"The strategy {start_method(strategy)!r}, which notebooks use, cannot start processes on {n} GPUs here: "
            "the process that starts them uses a GPU itself. Write the training into a script and run "
            f"`python script.py` or `torchrun --nproc-per-node={n} script.py`, which may save the model for the "
            "notebook to load; or pass `devices=1`."
        )
    if _here.interrupted:
        raise RuntimeError(
            "An earlier training was interrupted, and its other processes have ended: start the script again. With "
            "`checkpoint_dir=` and `resume=True` it goes on from the last epoch."
        )
    if any(isinstance(callback, SaveCheckpoint) for callback in callbacks_of(trainer)):
        raise ValueError(
            "scvi-tools' SaveCheckpoint, and `enable_checkpointing=True`, would write and delete the same files in "
            f"{n} processes: leave them out, and pass `checkpoint_dir=` to keep the state after every epoch; or pass "
            "`devices=1`."
        )
    if min(batch_size, n_train) < _FEWEST_CELLS * n:
        raise ValueError(
            f"A step has {min(batch_size, n_train)} cells ({n_train} training cells, batches of {batch_size}), which "
            f"{n} processes cannot share: pass batch sizes of at least {_FEWEST_CELLS * n}, or fewer `devices`."
        )


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Callbacks of a trainer, which does not declare them."""
    return cast(Any, trainer).callbacks


def makes_copies(trainer: Trainer) -> bool:
    """Whether a fit runs in copies of this process, which end with it: the notebook strategies, and ``ddp_spawn``."""
    return isinstance(trainer.strategy, DDPStrategy) and start_method(trainer.strategy) != "popen"
