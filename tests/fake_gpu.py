"""A device that is no CPU, for counting: its tensors hold CPU tensors and refuse to meet others.

It proves where tensors lie and what would wait for a GPU, not values. Run as a program it prints,
for each architecture, how often a training step waits with few chunks and with many.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

WAITS: Counter[str] = Counter()
NAME = "fake"
STATE = {"random": torch.Generator().manual_seed(7).get_state()}
aten = torch.ops.aten
MAY_MIX = {
    aten.copy_.default,
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
    aten._foreach_copy_.default,
}
ASKS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
}
RANDOM = ("bernoulli", "native_dropout", "rand", "normal", "uniform")


class _Module:
    """What torch asks of a device's module."""

    def is_initialized(self):
        return True

    is_available = is_initialized

    def current_device(self):
        return 0

    def device_count(self):
        return 1

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        STATE["random"] = torch.Generator().manual_seed(seed + 1).get_state()

    manual_seed = manual_seed_all

    def get_rng_state(self, device=0):
        return STATE["random"].clone()

    def set_rng_state(self, state, device=0):
        STATE["random"] = state.clone()

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16, torch.float32]

    def synchronize(self, *args):
        WAITS["synchronize"] += 1

    class device:  # noqa: N801 - torch's name
        def __init__(self, number):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            return False


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
torch.__future__.set_swap_module_params_on_conversion(True)
DEVICE = torch.device(f"{NAME}:0")


class Fake(torch.Tensor):
    """A tensor of the device."""

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
            requires_grad=False,
        )
        made.held = held
        return made

    def tolist(self):
        WAITS["tolist"] += 1
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    if torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), torch._C.DispatchKey.CompositeImplicitAutograd
    ):
        with _Mode():
            found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
    flat, _ = tree_flatten((args, kwargs))
    tensors = [one for one in flat if isinstance(one, torch.Tensor)]
    there = [one for one in tensors if isinstance(one, Fake)]
    here = [one for one in tensors if not isinstance(one, Fake) and one.ndim > 0]
    if there and here and (func not in MAY_MIX or not isinstance(args[0], Fake)):
        copies = func is aten.copy_.default
        if not copies:
            raise RuntimeError(f"tensors on two devices meet in {func}")
    asked = kwargs.get("device")
    goes = bool(there)
    if asked is not None:
        goes = torch.device(asked).type == NAME
        if bool(there) != goes and tensors and not kwargs.get("non_blocking"):
            WAITS["copy"] += 1
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if func is aten.copy_.default:
        goes = isinstance(args[0], Fake)
        waits = isinstance(args[1], Fake) != goes and args[1].ndim
        WAITS["copy"] += bool(waits and not (len(args) > 2 and args[2]))
    if there and func in ASKS:
        WAITS[func.__name__] += 1
    if there and func is aten.index.Tensor:
        chosen = [one for one in args[1] if isinstance(one, torch.Tensor)]
        WAITS["bool index"] += any(one.dtype == torch.bool for one in chosen)
        WAITS["index from the CPU"] += any(not isinstance(one, Fake) for one in chosen)
    kwargs.pop("pin_memory", None)
    plain_args, plain_kwargs = tree_map(
        lambda one: one.held if isinstance(one, Fake) else one, (args, kwargs)
    )
    draws = goes and any(name in str(func) for name in RANDOM)
    if draws:
        before = torch.get_rng_state()
        torch.set_rng_state(STATE["random"])
    try:
        found = func(*plain_args, **plain_kwargs)
    finally:
        if draws:
            STATE["random"] = torch.get_rng_state()
            torch.set_rng_state(before)
    name = func._schema.name
    if name.endswith("_") and not name.endswith("__") and args and tensors:
        return args[0]
    if not goes:
        return found
    return tree_map(_held, found)


def _held(found):
    plain = isinstance(found, torch.Tensor) and not isinstance(found, Fake)
    return Fake(found) if plain else found


_tensor = torch.tensor


def _made(*args, device=None, requires_grad=False, **kwargs):
    """``torch.tensor``, which asks for storage that the device has not."""
    if device is None or torch.device(device).type != NAME:
        return _tensor(*args, device=device, requires_grad=requires_grad, **kwargs)
    WAITS["copy"] += 1
    return Fake(_tensor(*args, **kwargs)).requires_grad_(requires_grad)


# ``with torch.device("meta")`` notes at its first use which functions it changes. Without the real
# one among them transformers does not see that it is in such a block, and leaves buffers unset.
_device_constructors()
torch.tensor = _made


def main() -> None:
    """Print the waits of a step, by architecture: with few chunks, with many, and how many."""
    import st_jv5
    from st_jv5.teacher import TeacherStore
    from tests import conftest

    texts = conftest.real_texts()[:12]
    for architecture in sys.argv[1:] or conftest.ARCHITECTURES:
        WAITS.clear()
        folder = tempfile.mkdtemp()
        tokenizer = conftest._tokenizer(architecture)
        conftest._backbone(architecture, len(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        store = TeacherStore.open(tempfile.mkdtemp(), create=True).space("t", dim=24)
        store.add(texts, np.random.default_rng(0).standard_normal((12, 24)))
        model = conftest.adapted(folder)
        with _Mode():
            model.to(DEVICE)
        st_jv5.train_task(model, "retrieval")
        model.train()
        features = [
            {
                key: Fake(value) if isinstance(value, torch.Tensor) else value
                for key, value in model.preprocess(column).items()
            }
            for column in (texts[:6], texts[6:])
        ]
        labels = torch.from_numpy(store.rows(texts).reshape(2, 6).T.copy())
        told = {}
        for tokens in (2048, 8):
            with _Mode():
                loss = st_jv5.losses.retrieval_loss(
                    model, 24, store=store, dims=(8, 48), mini_batch_tokens=tokens
                )
            seen, stock = [], model.forward
            model.forward = lambda f, seen=seen, stock=stock, **k: seen.append(1) or stock(f, **k)
            WAITS.clear()
            with _Mode():
                sum(loss([dict(one) for one in features], labels).values()).backward()
            model.forward = stock
            waits = {kind: count for kind, count in WAITS.items() if count}
            told[str(tokens)] = {"forwards": len(seen), "waits": waits}
        print(json.dumps({architecture: told}), flush=True)


if __name__ == "__main__":
    main()
