"""The cases of `gpu.py` that run kseg on JAX."""

import concurrent.futures
import contextlib
import functools
import importlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

os.environ["KERAS_BACKEND"] = "jax"

import _gpu_shared as shared
import jax
import jax.numpy as jnp
import keras
import numpy as np
from _gpu_shared import emit, median_seconds, relative_error, turn

GIGABYTE = 1e9
# Precisions of a product of float32 matrices, by their names in JAX.
PRECISIONS = {
    "float32": "highest",
    "default": None,
    "tf32": "TF32_TF32_F32",
    "bf16": "BF16_BF16_F32",
}
# Largest accepted relative errors.
BOUNDS = {"float32": 1e-5, "default": 1e-3, "tf32": 1e-3, "bf16": 1e-2}
NETWORKS = {
    "hrnet_w48": {"backbone": "hrnet_w48", "head": "hrnet"},
    "ocrnet_w48": {"backbone": "hrnet_w48", "head": "ocr"},
    "deeplabv3_r101": {
        "backbone": "resnet101",
        "head": "deeplabv3",
        "backbone_arguments": {"variant": "v1c", "output_stride": 8},
    },
    "upernet_swin_t": {
        "backbone": "swin_t",
        "head": "upernet",
        "backbone_arguments": {"drop_path_rate": 0.0},
    },
}
TOY_NETWORKS = {
    "hrnet_w48": {"backbone": "hrnet_w18_small", "head": "hrnet"},
    "ocrnet_w48": {
        "backbone": "resnet18",
        "head": "ocr",
        "head_arguments": {"channels": 16, "key_channels": 8},
    },
    "deeplabv3_r101": {
        "backbone": "resnet18",
        "head": "deeplabv3",
        "backbone_arguments": {"output_stride": 8},
        "head_arguments": {"channels": 16, "aspp_channels": 16, "aux_channels": 16},
    },
    "upernet_swin_t": {
        "backbone": "resnet18",
        "head": "upernet",
        "head_arguments": {"channels": 16, "aux_channels": 16},
    },
}
# Forward and backward of 8 images of 512 x 1024, 19 classes, in TFLOP: their time at the rate of
# the matrix product is the floor of a step.
STEP_FLOOR_MS = {"hrnet_w48": 11, "ocrnet_w48": 19, "deeplabv3_r101": 28, "upernet_swin_t": 28}


def device():
    """Names the device and the versions."""
    first = jax.devices()[0]
    return {"side": "jax", "device": first.device_kind, "jax": jax.__version__}


def ceilings(sizes):
    """Times a matrix product in bfloat16 and a copy; the product in TF32 and float32 too."""
    key = jax.random.key(0)
    n = sizes.matrix
    a, b = (jax.random.normal(k, (n, n), "float32") for k in jax.random.split(key))
    products = {}
    for name, precision in precisions().items():
        if name != "bf16":
            products[name] = jax.jit(functools.partial(jnp.matmul, precision=precision)), (a, b)
    half = a.astype("bfloat16"), b.astype("bfloat16")
    products["bf16"] = jax.jit(jnp.matmul), half
    x = jax.random.bits(key, (sizes.copied // 4,), "uint32")
    # Written as a sum so that the compiler does not drop it: one read and one write of each byte.
    copy = jax.jit(lambda x: x + jnp.uint32(1))
    times = {}
    with turn():
        for name, (function, inputs) in products.items():
            call = functools.partial(function, *inputs)
            times[name], _ = median_seconds(call, jax.block_until_ready, sizes, warm_up=3)
        copied, _ = median_seconds(lambda: copy(x), jax.block_until_ready, sizes, warm_up=3)
    rates = {f"{name}_tflops": 2 * n**3 / seconds / 1e12 for name, seconds in times.items()}
    emit(**device(), rows=n, **rates, copy_gb_per_s=2 * x.nbytes / copied / GIGABYTE)


@functools.cache
def precisions():
    """Lists the `PRECISIONS` that this device distinguishes: a CPU has only float32."""
    if jax.default_backend() == "cpu":
        return {"float32": "highest"}
    return {name: p for name, p in PRECISIONS.items() if supported(p)}


def supported(precision):
    """Returns True if this device supports a precision for products of float32 matrices."""
    try:
        x = jnp.ones((16, 16))
        jax.block_until_ready(jnp.matmul(x, x, precision=precision))
    except Exception:  # Whatever a backend raises: it is a question.
        return False
    return True


# --- Objectives -----------------------------------------------------------------------------------


def build_objective(method, sizes, **settings):
    """Builds an objective by the name of its method, with the capacities of the papers."""
    from kseg.contrast.contextrast import Contextrast
    from kseg.contrast.multi_scale import MultiScaleContrast
    from kseg.contrast.pixel_contrast import PixelContrast
    from kseg.contrast.region_contrast import RegionContrast

    ((name, arguments),) = shared.METHODS[method]
    extra = {
        "multi_scale": {"max_anchors": sizes.max_anchors},
        "region_contrast": {"capacity": sizes.capacity},
        "contextrast": {},
        "pixel_contrast": {},
    }[name]
    kinds = {
        "multi_scale": MultiScaleContrast,
        "region_contrast": RegionContrast,
        "contextrast": Contextrast,
        "pixel_contrast": PixelContrast,
    }
    return kinds[name](sizes.classes, **extra, **arguments, **settings)


def fill_bank(objective):
    """Fills a memory bank, as after a long training."""
    if (bank := getattr(objective, "bank", None)) is not None:
        bank.entries.assign(shared.bank_entries(*bank.entries.shape))
        bank.count.assign(np.broadcast_to(bank.capacity, bank.num_classes))


class ObjectiveLoss:
    """An objective as a pure function of the maps that have gradients.

    Attributes:
        maps, others: dicts of arrays on the device; gradients are those of `maps`.
        state: list of arrays: banks and seeds.
    """

    def __init__(self, method, sizes, inputs=None):
        inputs = dict(shared.method_inputs(method, sizes) if inputs is None else inputs)
        self.objective = build_objective(method, sizes)
        self.objective.prepare(inputs)
        fill_bank(self.objective)
        self.others = {key: jnp.asarray(inputs.pop(key)) for key in ("logits", "labels")}
        self.maps = {key: jnp.asarray(x) for key, x in inputs.items()}
        self.variables = state_variables(self.objective)
        self.state = [v.value for v in self.variables]

    def terms(self, maps, others, state):
        """Sums the terms."""
        mapping = list(zip(self.variables, state, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            outputs = {**maps, "logits": others["logits"]}
            terms, _ = self.objective.contrast(outputs, others["labels"])
        return sum(terms.values())

    def samples(self):
        """Returns the arrays that the objective draws in this state, in order."""
        drawn = []

        def recorded(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                result = function(*args, **kwargs)
                drawn.append(result)
                return result

            return wrapper

        def draw(maps, others, state):
            drawn.clear()
            self.terms(maps, others, state)
            return list(drawn)

        from kseg.contrast import contextrast, memory_bank, multi_scale, pixel_contrast

        places = (
            (multi_scale, "balanced_anchors"),
            (contextrast, "boundary_aware_samples"),
            (pixel_contrast, "hard_anchors"),
            (memory_bank.MemoryBank, "sample"),
        )
        with contextlib.ExitStack() as stack:
            for owner, name in places:
                stack.enter_context(replaced(owner, name, recorded(getattr(owner, name))))
            return jax.tree.leaves(jax.jit(draw)(self.maps, self.others, self.state))

    def lowered(self, precision=None, block_size=None):
        """Lowers loss and gradients for compilation."""
        with tiles(block_size), jax.default_matmul_precision(precision or "default"):
            function = jax.jit(jax.value_and_grad(self.terms))
            return function.lower(self.maps, self.others, self.state)


def state_variables(*layers):
    """Lists the variables of layers that are not trainable weights: banks and seeds."""
    found = {}
    for layer in layers:
        trained = {id(v) for v in layer.trainable_variables}
        found |= {id(v): v for v in layer.variables if id(v) not in trained}
    return list(found.values())


@contextlib.contextmanager
def replaced(owner, name, value):
    """Replaces an attribute of a module or a class while the block runs."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def tiles(block_size):
    """Sets the tile size of the objectives' kernels; None: their own choice."""
    if block_size is None:
        yield
        return
    kernel = importlib.import_module("kseg.contrast.info_nce")
    original = kernel.info_nce

    def info_nce(*args, **kwargs):
        return original(*args, **{**kwargs, "block_size": block_size})

    side = block_size if isinstance(block_size, int) else max(block_size)
    held = max(kernel.held_similarities(), 2 * side**2)  # Else blocks of anchors were cut again.
    with contextlib.ExitStack() as stack:
        for module in ("kseg.contrast.global_batch", "kseg.contrast.region_contrast"):
            stack.enter_context(replaced(importlib.import_module(module), "info_nce", info_nce))
        stack.enter_context(replaced(kernel, "held_similarities", lambda: held))
        yield


def numerics(sizes, what):
    """Compares loss and gradients with dense PyTorch in float64 on the same device."""
    if what == "similarities":
        return similarities(sizes)
    if what == "logits":
        return logit_losses(sizes)
    loss = ObjectiveLoss(what, sizes)
    inputs = {**loss.maps, **loss.others}
    samples = {f"sample{i}": x for i, x in enumerate(loss.samples())}
    bank = getattr(loss.objective, "bank", None)
    if bank is not None:
        samples["bank"] = bank.entries.value
    with Reference("objective", what, sizes, {**inputs, **samples}) as reference:
        executables = compile_all({name: loss.lowered(p) for name, p in precisions().items()})
        expected = reference.result()
        for name, executable in executables.items():
            value, gradients = executable(loss.maps, loss.others, loss.state)
            report_errors(what, name, value, gradients, expected)


def compile_all(lowered):
    """Compiles programs in parallel; returns a dict of executables."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = {name: pool.submit(program.compile) for name, program in lowered.items()}
        return {name: future.result() for name, future in futures.items()}


def report_errors(what, precision, value, gradients, expected, **more):
    """Emits the errors of a loss and its gradients, and further values."""
    errors = {"loss": relative_error(value, expected["loss"])}
    for key, gradient in gradients.items():
        errors[f"gradient of {key}"] = relative_error(gradient, expected[f"gradient_{key}"])
    worst = max(errors.values()) if all(np.isfinite(list(errors.values()))) else float("nan")
    emit(
        **device(),
        what=what,
        precision=precision,
        loss=float(value),
        errors=errors,
        bound=BOUNDS[precision],
        within=bool(worst < BOUNDS[precision] and more.get("their_distance", 0.0) < 1e-6),
        **more,
    )


class Reference:
    """Results of PyTorch in float64, computed in a separate process and exchanged as files.

    Args:
        kind: str, a function of `_gpu_torch.py`.
        what: str, its first argument.
        sizes: `Sizes`.
        inputs: dict of arrays.
    """

    def __init__(self, kind, what, sizes, inputs):
        memory = pathlib.Path("/dev/shm")
        roomy = memory.is_dir() and shutil.disk_usage(memory).free > 8 * GIGABYTE
        self._folder = tempfile.TemporaryDirectory(dir=memory if roomy else None)
        folder = pathlib.Path(self._folder.name)
        np.savez(folder / "inputs.npz", **{key: np.asarray(x) for key, x in inputs.items()})
        script = pathlib.Path(__file__).with_name("_gpu_torch.py")
        command = [sys.executable, str(script), kind, what, str(folder)]
        command += ["toy"] if sizes is shared.TOY else []
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def result(self):
        """Waits for the results and returns a dict of arrays.

        Raises:
            RuntimeError: if the process failed.
        """
        if self._process.wait():
            raise RuntimeError("the reference in PyTorch failed")
        with np.load(pathlib.Path(self._folder.name) / "expected.npz") as file:
            return dict(file)


def logit_losses(sizes):
    """Compares cross-entropy, OHEM and Lovasz-softmax at the papers' sizes with float64."""
    labels = shared.street_labels(sizes)
    size = sizes.height // 4, sizes.width // 4
    x = jnp.asarray(shared.rounded_to_bfloat16(shared.logits(labels, sizes.classes, *size)))
    losses = {key: jax.jit(jax.value_and_grad(f)) for key, f in logit_functions(sizes).items()}
    kept = np.asarray(jax.jit(functools.partial(kept_pixels, sizes))(x, jnp.asarray(labels)))
    inputs = {"labels": labels, "logits": x, "kept": kept}
    with Reference("logit_losses", "all", sizes, inputs) as reference:
        found = {}
        for name in precisions().keys() & {"float32", "default"}:
            with jax.default_matmul_precision(PRECISIONS[name] or "default"):
                found[name] = {key: loss(x, jnp.asarray(labels)) for key, loss in losses.items()}
        expected = reference.result()
    for precision, results in found.items():
        for key, (value, gradient) in results.items():
            of_this = {"loss": expected[key], "gradient_logits": expected[f"{key}_gradient"]}
            choice = {}
            if key == "ohem":  # A probability may be rounded to the other side of the threshold.
                choice["pixels_kept_otherwise"] = int(expected["ohem_others"])
                choice["their_distance"] = float(expected["ohem_distance"])
            report_errors(key, precision, value, {"logits": gradient}, of_this, **choice)


def kept_pixels(sizes, x, labels):
    """Marks the pixels that OHEM keeps, bool `(batch, height, width)`."""
    from kseg.losses.ohem import ohem_cross_entropy

    return ohem_cross_entropy(labels, x, min_kept=min_kept(sizes))[1] > 0


def min_kept(sizes):
    """Scales the smallest number of pixels that OHEM keeps, 100,000 of the papers' batch."""
    return sizes.batch * sizes.height * sizes.width // 42


def logit_functions(sizes):
    """Returns the losses of logits and labels by name."""
    from kseg.losses.cross_entropy import cross_entropy
    from kseg.losses.lovasz import lovasz_softmax
    from kseg.losses.ohem import ohem_cross_entropy
    from kseg.losses.reduction import global_mean, global_ratio

    kept = min_kept(sizes)
    return {
        "cross_entropy": lambda x, y: global_ratio(*cross_entropy(y, x)),
        "ohem": lambda x, y: global_mean(*ohem_cross_entropy(y, x, min_kept=kept)),
        "lovasz": lambda x, y: lovasz_softmax(y, x),
    }


def similarities(sizes):
    """Measures the effect of the product's precision on similarities and on their loss.

    Embeddings are of float32, and of float32 with values of bfloat16, which TF32 holds exactly
    unless they are divided by the temperature before the product.
    """
    from kseg.contrast.info_nce import info_nce

    rows, dim = min(sizes.max_anchors, 4096), sizes.dim
    labels = np.sort(np.arange(rows) % sizes.classes).astype("int32")
    rng = np.random.default_rng(0)
    prototypes = shared.unit_rows(rng.standard_normal((sizes.classes, dim), dtype="float32"))
    x = rng.standard_normal((rows, dim), dtype="float32") * 1.5 * dim**-0.5 + prototypes[labels]
    x = shared.unit_rows(x)
    for kind, embeddings in (("float32", x), ("bfloat16", shared.rounded_to_bfloat16(x))):
        exact = embeddings.astype("float64") @ embeddings.astype("float64").T
        embeddings = jnp.asarray(embeddings)
        for temperature in (0.07, 0.1, 0.2):

            def before(x, temperature=temperature):
                return jnp.matmul(x / temperature, x.T)

            def after(x, temperature=temperature):
                return jnp.matmul(x, x.T) / temperature

            def loss(x, temperature=temperature):
                total, number = info_nce(
                    *(x, labels, x, labels),
                    temperature=temperature,
                    exclude_self=True,
                    reduction="sum",
                )
                return total / number

            results = {}
            for name, precision in precisions().items():
                with jax.default_matmul_precision(precision or "default"):
                    products = [np.asarray(jax.jit(f)(embeddings)) for f in (before, after)]
                    results[name] = products, jax.jit(jax.value_and_grad(loss))(embeddings)
            _, (loss_of_float32, gradient_of_float32) = results["float32"]
            for name, (products, (value, gradient)) in results.items():
                errors = [np.abs(p - exact / temperature).max() for p in products]
                emit(
                    **device(),
                    embeddings=kind,
                    temperature=temperature,
                    precision=name,
                    largest_error_divided_before=float(errors[0]),
                    largest_error_divided_after=float(errors[1]),
                    loss_error=relative_error(value, loss_of_float32),
                    gradient_error=relative_error(gradient, gradient_of_float32),
                )


def objectives(sizes, method):
    """Times an objective, forward and gradient, in tiles of several sizes."""
    block_sizes = {
        "multi_scale": sizes.tiles,
        "region_contrast": [(256, 2048), (256, 8192)],  # The first ones are those of a CPU.
        "contextrast": [],
        "pixel_contrast": [(256, 1024)],
        "pixel_contrast_memory": [(256, 1024)],
    }[method]
    # In those that kseg chooses by all precisions, in others as JAX has it by default.
    variants = {(None, name): p for name, p in precisions().items()}
    name = "default" if "default" in precisions() else "float32"
    variants |= {(block_size, name): precisions()[name] for block_size in block_sizes}
    loss = ObjectiveLoss(method, sizes)
    executables = compile_all(
        {key: loss.lowered(precision, key[0]) for key, precision in variants.items()}
    )
    with turn():
        for (block_size, precision), executable in executables.items():
            call = functools.partial(executable, loss.maps, loss.others, loss.state)
            seconds, spread = median_seconds(call, jax.block_until_ready, sizes)
            emit(
                **device(),
                method=method,
                tiles=block_size or "own",
                precision=precision,
                ms=1e3 * seconds,
                spread_ms=1e3 * spread,
                **planned_memory(executable),
                loss=float(call()[0]),
            )


def planned_memory(executable):
    """Returns the memory in GB that the compiler plans for a call besides inputs and outputs."""
    try:
        plan = executable.memory_analysis()
        return {"temporary_gb": plan.temp_size_in_bytes / GIGABYTE}
    except Exception:  # Some backends have none.
        return {}


# --- Training steps -------------------------------------------------------------------------------


def network(sizes, name, method, *options):
    """Times a training step: image to loss to SGD with momentum and weight decay."""
    started = time.perf_counter()
    toy = sizes is shared.TOY
    keras.config.set_dtype_policy("mixed_bfloat16")
    settings = dict((TOY_NETWORKS if toy else NETWORKS)[name])
    if "fused_norm" in options:
        fuse_batch_norm()
    settings_of_method = {}
    if method == "multi_scale" and name == "deeplabv3_r101":  # c4 is of the size of c3.
        settings_of_method = {
            "scale_weights": {"c2": 1.0, "c3": 0.7, "c5": 0.7},
            "cross_scale_pairs": (("c2", "c5"), ("c2", "c3")),
        }
    built = [build_objective(method, sizes, **settings_of_method)] if method != "ce" else []
    stages = sorted({stage for objective in built for stage in objective.stages})
    from kseg.segmenters import build_segmenter
    from kseg.training.jax_trainer import JaxTrainer
    from kseg.training.updates import SGD

    with numpy_initializers():
        segmenter = build_segmenter(
            settings.pop("backbone"),
            settings.pop("head"),
            sizes.classes,
            projections=stages,
            embedding_dim=sizes.dim,
            projector_layers=2 if method == "multi_scale" else 1,
            **settings,
        )
    trainer = JaxTrainer(
        segmenter,
        updates=SGD(momentum=0.9, decay_rate=5e-4),
        schedule=lambda step: 0.01,
        objectives=[(objective, 0.1) for objective in built],
    )
    for objective in built:
        fill_bank(objective)
    state = trainer.initial_state()
    labels = shared.street_labels(sizes)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*labels.shape, 3), dtype="uint8")
    seconds = {"build_s": time.perf_counter() - started}

    started = time.perf_counter()
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(labels)}
    lowered = jax.jit(trainer.step, donate_argnums=0).lower(state, batch)
    seconds["trace_s"] = time.perf_counter() - started
    started = time.perf_counter()
    compiled = lowered.compile()
    seconds["compile_s"] = time.perf_counter() - started

    logs = []

    def call():
        nonlocal state
        state, found = compiled(state, batch)
        logs.append(found)
        return found

    with turn():
        milliseconds, spread = median_seconds(call, jax.block_until_ready, sizes, warm_up=3)
    statistics = jax.devices()[0].memory_stats() or {}
    emit(
        **device(),
        network=name,
        method=method,
        options=list(options),
        step_ms=1e3 * milliseconds,
        spread_ms=1e3 * spread,
        floor_ms=STEP_FLOOR_MS[name],
        peak_gb=statistics.get("peak_bytes_in_use", 0) / GIGABYTE,
        **planned_memory(compiled),
        weights=sum(int(np.prod(v.shape)) for v in segmenter.trainable_variables),
        **seconds,
        first_losses={key: float(x) for key, x in logs[0].items()},
        last_losses={key: float(x) for key, x in logs[-1].items()},
    )


@contextlib.contextmanager
def numpy_initializers():
    """Draws weights with NumPy while the block runs.

    Keras has JAX compile a program for each shape, which takes a minute for HRNet-W48.
    """
    rng = np.random.default_rng(0)

    def draw(self, shape, dtype=None):
        return jnp.asarray(rng.standard_normal(shape, dtype="float32") * self.stddev, dtype)

    def draw_by_fan(self, shape, dtype=None):
        receptive = int(np.prod(shape[:-2])) if len(shape) > 2 else 1
        fan_in, fan_out = (n * receptive for n in (*shape, *shape)[-2:])
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        scale = (self.scale / max(fan, 1.0)) ** 0.5
        return jnp.asarray(rng.standard_normal(shape, dtype="float32") * scale, dtype)

    kinds = keras.initializers
    with (
        replaced(kinds.VarianceScaling, "__call__", draw_by_fan),
        replaced(kinds.RandomNormal, "__call__", draw),
        replaced(kinds.TruncatedNormal, "__call__", draw),
    ):
        yield


def fuse_batch_norm():
    """Replaces the batch norm of kseg's layers by one that stores only its input for the gradient.

    Statistics in one pass over the map, in float32.
    """
    from kseg import layers

    plain = layers.BatchNormalization.call

    @functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
    def normalize(x, gamma, beta, epsilon):
        return forward(x, gamma, beta, epsilon)[0]

    def forward(x, gamma, beta, epsilon):
        wide = x.astype("float32")
        mean = jnp.mean(wide, axis=(0, 1, 2))
        variance = jnp.maximum(jnp.mean(jnp.square(wide), axis=(0, 1, 2)) - jnp.square(mean), 0.0)
        root = jax.lax.rsqrt(variance + epsilon)
        scale = gamma * root
        y = (wide * scale + (beta - mean * scale)).astype(x.dtype)
        return (y, mean, variance), (x, gamma, mean, root)

    def backward(epsilon, kept, upstream):
        x, gamma, mean, root = kept
        dy = upstream[0].astype("float32")
        normal = (x.astype("float32") - mean) * root
        count = x.shape[0] * x.shape[1] * x.shape[2]
        d_beta = jnp.sum(dy, axis=(0, 1, 2))
        d_gamma = jnp.sum(dy * normal, axis=(0, 1, 2))
        dx = gamma * root * (dy - d_beta / count - normal * (d_gamma / count))
        return dx.astype(x.dtype), d_gamma, d_beta

    normalize.defvjp(forward, backward)

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable) or mask is not None or len(inputs.shape) != 4:
            return plain(self, inputs, training=training, mask=mask)
        gamma, beta = (v.value.astype("float32") for v in (self.gamma, self.beta))
        y, mean, variance = normalize(inputs, gamma, beta, self.epsilon)
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            batch = jax.lax.stop_gradient(batch)
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return y

    layers.BatchNormalization.call = call
