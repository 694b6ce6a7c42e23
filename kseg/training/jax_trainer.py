"""Training step on JAX: a pure function of a state and a batch.

It computes the same as `kseg.training.trainer.SegmentationTrainer` on TensorFlow, from the same
losses, objectives, schedule and distortion, without importing TensorFlow. Compile it with `jax.jit`
or use it in a `jax.lax.scan` over many steps.
"""

import functools

import jax
import jax.numpy as jnp
import keras
from jax.extend.core import Var, jaxpr_as_fun

from kseg.losses.labels import class_numbers, pixel_weights
from kseg.training import trainer_checks
from kseg.training.build import default_losses
from kseg.training.compiled_terms import as_functions
from kseg.training.projecting import ObjectiveOutputs
from kseg.training.terms import compute_terms
from kseg.training.updates import clip_by_global_norm, is_decayed


class JaxTrainer:
    """A segmenter with its losses and contrastive objectives, as a function without side effects.

    The state of a run is a dict of lists of arrays: `weights` (trainable), `statistics` (the
    segmenter's other variables: moving statistics, seed generators), `objectives` (banks, seed
    generators), `slots` (the optimizer's), and `step`, int32 scalar.

    Args:
        segmenter, losses, objectives, clip_norm, distortion: as for
            `kseg.training.trainer.SegmentationTrainer`.
        updates: `kseg.training.updates.SGD` or `AdamW`.
        schedule: function from the step, an int32 scalar, to the learning rate.
        learning_rate_factors: dict from the path of a weight to the factor of its learning rate;
            others: 1. None: all 1.

    Raises:
        RuntimeError: if the Keras backend is not JAX.
        ValueError: as `SegmentationTrainer`.
    """

    def __init__(
        self,
        segmenter,
        *,
        updates,
        schedule,
        learning_rate_factors=None,
        losses=None,
        objectives=(),
        clip_norm=None,
        distortion=None,
    ):
        if keras.backend.backend() != "jax":
            raise RuntimeError(
                "The JAX training step needs Keras on JAX. Received: "
                f"{keras.backend.backend()!r}. Set KERAS_BACKEND=jax before Keras is imported"
            )
        self.segmenter = segmenter
        self.updates = updates
        self.schedule = schedule
        self.learning_rate_factors = dict(learning_rate_factors or {})
        trainer_checks.check_segmenter(segmenter)
        trainer_checks.check_pairs_of(losses, objectives)
        losses = default_losses(segmenter) if losses is None else losses
        self.losses_on_logits = as_functions(losses)
        self.objectives = [objective for objective, _ in objectives]
        self.objective_weights = [weight for _, weight in objectives]
        trainer_checks.check_names(self.losses_on_logits, self.objectives)
        self.clip_norm = clip_norm
        self.distortion = distortion
        for objective in self.objectives:
            trainer_checks.check_objective(objective, segmenter)
            objective.prepare(segmenter.output)
        self._outputs = ObjectiveOutputs(segmenter, self.objectives)

    def variables(self):
        """Returns the Keras variables behind the state: a dict of lists, in the state's order."""
        return {
            "weights": self.segmenter.trainable_variables,
            "statistics": self.segmenter.non_trainable_variables,
            "objectives": [v for objective in self.objectives for v in objective.variables],
        }

    def initial_state(self):
        """Returns the state before the first step: copies of the variables' current values."""
        state = {
            name: [jnp.array(v.value) for v in variables]
            for name, variables in self.variables().items()
        }
        slots = self.updates.slots(state["weights"])
        return {**state, "slots": slots, "step": jnp.zeros((), "int32")}

    def assign(self, state):
        """Writes a state back into the Keras variables, to evaluate, save or export them."""
        for name, variables in self.variables().items():
            for variable, value in zip(variables, state[name], strict=True):
                variable.assign(value)

    def step(self, state, batch, *, schedule=None, objective_weights=None):
        """Takes one optimizer step.

        Args:
            state: as returned by `initial_state` or the previous step.
            batch: dict with `image`, `label`, and optionally `sample_weight` and `draws`, as
                `SegmentationTrainer.take_step` takes it, static shapes.
            schedule: replaces the trainer's if not None, so that one compiled step serves runs
                whose learning rates are inputs.
            objective_weights: list of float32 scalars, replaces the trainer's if not None.

        Returns:
            `(state, logs)`: the new state; and a dict of float32 scalars, `loss` (the weighted sum)
            and each term before its weight.
        """
        if self.distortion is not None and "draws" not in batch:
            raise ValueError(f"A distortion needs batches with `draws`. Received: {sorted(batch)}")
        step = state["step"]
        if objective_weights is None:
            objective_weights = [w(step) if callable(w) else w for w in self.objective_weights]
        loss = functools.partial(
            self._loss, state=state, batch=batch, objective_weights=objective_weights
        )
        (_, (logs, bank_entries, statistics, banks)), gradients, reached = _value_and_gradients(
            loss, state["weights"]
        )
        if self.clip_norm:
            clipped = clip_by_global_norm([gradients[i] for i in reached], self.clip_norm)
            gradients = dict(zip(reached, clipped, strict=True))
        rate = (schedule or self.schedule)(step)
        variables = self.segmenter.trainable_variables
        values, slots = self.updates.update(
            [state["weights"][i] for i in reached],
            [gradients[i] for i in reached],
            [[slot[i] for i in reached] for slot in state["slots"]],
            step=step,
            rates=[rate * self.learning_rate_factors.get(variables[i].path, 1.0) for i in reached],
            decays=[is_decayed(variables[i]) for i in reached],
        )
        new = {
            "weights": _replaced(state["weights"], reached, values),
            "statistics": statistics,
            "objectives": self._remember(banks, bank_entries),
            "slots": [
                _replaced(old, reached, slot)
                for old, slot in zip(state["slots"], slots, strict=True)
            ],
            "step": step + 1,
        }
        return new, logs

    def _loss(self, weights, *, state, batch, objective_weights):
        """Computes the weighted sum of terms; also returns logs, bank entries and updated state."""
        variables = self.variables()
        values = {**state, "weights": weights}
        mapping = [
            pair for name in variables for pair in zip(variables[name], values[name], strict=True)
        ]
        labels, sample_weight = class_numbers(batch["label"]), batch.get("sample_weight")
        if sample_weight is not None:
            sample_weight = pixel_weights(sample_weight, labels)
        with keras.StatelessScope(state_mapping=mapping) as scope:
            images = batch["image"]
            if self.distortion is not None:
                images = self.distortion(images, batch["draws"])
            outputs = self._outputs(images, training=True)
            terms, bank_entries = compute_terms(
                self.losses_on_logits,
                list(zip(self.objectives, objective_weights, strict=True)),
                outputs,
                labels,
                sample_weight,
                self.segmenter.losses,
            )
            loss = sum(value * weight for value, weight in terms.values())
        statistics, banks = (
            _current(scope, variables[name], state[name]) for name in ("statistics", "objectives")
        )
        logs = {"loss": loss, **{name: value for name, (value, _) in terms.items()}}
        return loss, (logs, bank_entries, statistics, banks)

    def _remember(self, banks, bank_entries):
        """Lets the objectives store their entries; returns the new values of their variables."""
        variables = self.variables()["objectives"]
        mapping = list(zip(variables, banks, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            for objective, entries in zip(self.objectives, bank_entries, strict=True):
                objective.remember(entries)
        return _current(scope, variables, banks)


def _current(scope, variables, values):
    """Returns the values of variables at the end of a scope; unassigned ones keep theirs."""
    new = [scope.get_current_value(variable) for variable in variables]
    return [before if value is None else value for value, before in zip(new, values, strict=True)]


def _replaced(values, positions, new):
    values = list(values)
    for position, value in zip(positions, new, strict=True):
        values[position] = value
    return values


def _value_and_gradients(function, weights):
    """Differentiates, and determines which weights the value depends on at all.

    An optimizer must not change the other weights. TensorFlow's gradient for them is None, but JAX
    returns zeros, so weight decay would still shrink them.

    Args:
        function: from a list of arrays to `(value, extra)`.
        weights: list of arrays.

    Returns:
        `(value, extra), gradients, reached`: list of arrays, and indices of the reached weights.
    """
    differentiated = jax.value_and_grad(function, has_aux=True)
    closed, shapes = jax.make_jaxpr(differentiated, return_shape=True)(weights)
    jaxpr = closed.jaxpr
    # A gradient without inputs is one of JAX's zeros.
    dependent = set(jaxpr.invars)
    dependent |= {
        variable
        for variable, value in zip(jaxpr.constvars, closed.consts, strict=True)
        if isinstance(value, jax.core.Tracer)
    }
    for equation in jaxpr.eqns:
        if any(isinstance(v, Var) and v in dependent for v in equation.invars):
            dependent.update(equation.outvars)
    outputs = jaxpr.outvars[len(jaxpr.outvars) - len(weights) :]
    reached = [i for i, v in enumerate(outputs) if isinstance(v, Var) and v in dependent]
    value, gradients = jax.tree.unflatten(
        jax.tree.structure(shapes), jaxpr_as_fun(closed)(*weights)
    )
    return value, gradients, reached
