"""The monitor as a callback of transformers' Trainer and of Lightning, imported when asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from eigenscope.errors import InputError
from eigenscope.monitor.loop import Monitor


def trainer_callback(batches: Iterable[Any], loss: Any = None, **options: Any) -> Any:
    """A ``transformers.TrainerCallback`` that watches the curvature: ``Trainer(…, callbacks=[trainer_callback(batches)])``.

    The first process measures, on its own.

    Args:
        batches: as :class:`Monitor` takes them: collated, labels included.
        loss: loss(model, batch); None for ``model(**batch).loss``.
        options: of :class:`Monitor`.

    Returns:
        The callback; its ``monitor`` is the :class:`Monitor`, from the beginning of the training on.

    Raises:
        InputError: transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise InputError(
            "transformers is not installed", where="trainer_callback", remedy="pip install 'eigenscope[text]'"
        ) from error

    class Callback(TrainerCallback):
        monitor: Monitor | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                model = getattr(kwargs["model"], "module", kwargs["model"])
                self.monitor = Monitor(model, loss, batches, kwargs["optimizer"], **options)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.monitor is not None:
                self.monitor.step(state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.monitor is not None:
                self.monitor.close()

    return Callback()


def lightning_callback(batches: Iterable[Any], loss: Any, **options: Any) -> Any:
    """A Lightning ``Callback`` that watches the curvature: ``Trainer(…, callbacks=[lightning_callback(batches, loss)])``.

    Readings go to the trainer's own loggers, too. The first process measures, on its own, with the first optimiser.

    Args:
        batches: as :class:`Monitor` takes them.
        loss: loss(module, batch) → the mean over the batch; not ``training_step``, which logs.
        options: of :class:`Monitor`.

    Returns:
        The callback; its ``monitor`` is the :class:`Monitor`, from the beginning of the training on.

    Raises:
        InputError: Lightning is not installed.
    """
    try:
        from lightning.pytorch.callbacks import Callback as Base
    except ImportError as error:
        raise InputError(
            "Lightning is not installed", where="lightning_callback", remedy="pip install lightning"
        ) from error

    class Callback(Base):
        monitor: Monitor | None = None

        def __init__(self) -> None:
            super().__init__()
            self._last = 0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.is_global_zero and trainer.optimizers:
                self.monitor = Monitor(pl_module, loss, batches, trainer.optimizers[0], **options)
                self._last = trainer.global_step

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            # With accumulated gradients several batches make one step.
            if self.monitor is None or trainer.global_step == self._last:
                return
            self._last = trainer.global_step
            reading = self.monitor.step(trainer.global_step)
            if reading is not None:
                figures = reading.figures()
                numbers = {
                    f"eigenscope/{name}": value for name, value in figures.items() if isinstance(value, int | float)
                }
                for logger in trainer.loggers:
                    logger.log_metrics(numbers, step=trainer.global_step)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if self.monitor is not None:
                self.monitor.close()

    return Callback()
