"""The cases of `gpu.py` that run PyTorch, and the references in float64.

    _gpu_torch.py objective METHOD FOLDER [toy]
    _gpu_torch.py logit_losses all FOLDER [toy]

read `inputs.npz` of the folder and write `expected.npz`: losses and gradients in float64.
"""

import functools
import pathlib
import sys
import time

import _gpu_shared as shared
import numpy as np
import torch
from _gpu_shared import emit, median_seconds, turn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IGNORE = 255
SCALE_WEIGHTS = {"c2": 1.0, "c3": 0.7, "c4": 0.4, "c5": 0.1}
CROSS_SCALE_PAIRS = (("c2", "c5"), ("c2", "c4"))
LAYER_WEIGHTS = {"c2": 0.1, "c3": 0.4, "c4": 0.7, "c5": 1.0}
GIGABYTE = 1e9


def device():
    """Names the device and the versions."""
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    return {"side": "torch", "device": name, "torch": torch.__version__}


def synchronize(*_):
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


class Peak:
    """Measures the peak memory of a block, above what was in use before and in total, in GB."""

    def __enter__(self):
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *exception):
        self.found = {}
        if DEVICE.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
            self.found = {
                "peak_gb": peak / GIGABYTE,
                "temporary_gb": (peak - self._before) / GIGABYTE,
            }


def ceilings(sizes):
    """Times a matrix product in bfloat16, TF32 and float32, and a copy."""
    n = sizes.matrix
    a, b = (torch.randn(n, n, device=DEVICE) for _ in range(2))
    x = torch.empty(sizes.copied, dtype=torch.uint8, device=DEVICE).random_()
    y = torch.empty_like(x)
    half = a.bfloat16(), b.bfloat16()
    times = {}
    with turn():
        for name, inputs in (("bf16", half), ("tf32", (a, b)), ("float32", (a, b))):
            torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
            call = functools.partial(torch.matmul, *inputs)
            times[name], _ = median_seconds(call, synchronize, sizes, warm_up=3)
        copied, _ = median_seconds(lambda: y.copy_(x), synchronize, sizes, warm_up=3)
    rates = {f"{name}_tflops": 2 * n**3 / seconds / 1e12 for name, seconds in times.items()}
    emit(**device(), rows=n, **rates, copy_gb_per_s=2 * sizes.copied / copied / GIGABYTE)


# --- The papers' losses, written plainly ----------------------------------------------------------


def info_nce(anchors, anchor_labels, keys, key_labels, *, temperature, exclude_self=False):
    """Contrasts each positive with all negatives in a single matrix (Pissas et al., Eq. 1-2).

    Returns:
        `(loss, valid)` of the anchors: `mean_j softplus(logsumexp_n(s_in) - s_ij)`, and whether it
        has a positive.
    """
    s = anchors @ keys.T / temperature
    same = anchor_labels[:, None] == key_labels[None, :]
    negative = s.masked_fill(same, -torch.inf).logsumexp(dim=1, keepdim=True)
    if exclude_self:
        same = same & ~torch.eye(len(anchors), dtype=torch.bool, device=same.device)
    terms = functional.softplus(negative - s)
    count = same.sum(dim=1)
    loss = torch.where(same, terms, 0.0).sum(dim=1) / count.clamp(min=1)
    return loss, count > 0


def mean_of_valid(loss, valid):
    return (loss * valid).sum() / valid.sum().clamp(min=1)


def nearest(labels, size):
    """Resizes labels `(batch, height, width)` to the nearest neighbors."""
    labels = labels[:, None].float()
    return functional.interpolate(labels, size, mode="nearest-exact")[:, 0].long()


def balanced_positions(labels, num_classes, max_anchors, min_count=5):
    """Draws the same number of pixels of each present class, divided among images (Sec. 3.3).

    Returns:
        int64 `(rows,)`, places in the flattened labels.
    """
    batch = len(labels)
    flat = labels.reshape(batch, -1)
    members = functional.one_hot(flat.clamp(max=num_classes), num_classes + 1)[..., :-1]
    counts = members.sum(dim=1).cpu()
    total = counts.sum(dim=0)
    present = [c for c in range(num_classes) if total[c] >= min_count]
    if not present:
        return torch.zeros(0, dtype=torch.long, device=labels.device)
    each = min(int(total[present].min()), max_anchors // len(present))
    chosen = []
    for c in present:
        images = [b for b in range(batch) if counts[b, c]]
        images.sort(key=lambda b: int(counts[b, c]))
        missing = each
        for index, b in enumerate(images):
            take = min(int(counts[b, c]), missing // (len(images) - index))
            missing -= take
            places = (flat[b] == c).nonzero()[:, 0]
            order = torch.randperm(len(places), device=labels.device)[:take]
            chosen.append(places[order] + b * flat.shape[1])
    return torch.cat(chosen)


def multi_scale(
    maps,
    others,
    sizes,
    samples=None,
    *,
    weights=SCALE_WEIGHTS,
    pairs=CROSS_SCALE_PAIRS,
    kernel=info_nce,
):
    """Computes MS/CS within each scale and across pairs (Eq. 3 and 4).

    Args:
        maps: dict with `embedding_c2` to `embedding_c5`, `(batch, h, w, dim)`.
        others: dict with `labels`.
        sizes: `Sizes`.
        samples: None, or for each stage its positions and labels; -1 for unused rows.
        weights: dict of float by stage.
        pairs: pairs of stages.
        kernel: `info_nce`, or a way to call it.

    Returns:
        scalar.
    """
    sets = {}
    for number, stage in enumerate(weights):
        x = maps[f"embedding_{stage}"]
        labels = nearest(others["labels"], x.shape[1:3])
        if samples is None:
            positions = balanced_positions(labels, sizes.classes, sizes.max_anchors)
        else:
            positions = samples[2 * number]
            positions = positions[positions >= 0].long()
        sets[stage] = x.reshape(-1, x.shape[-1])[positions], labels.reshape(-1)[positions]

    def mean(first, second, **options):
        return mean_of_valid(*kernel(*first, *second, temperature=0.1, **options))

    within = sum(w * mean(sets[s], sets[s], exclude_self=True) for s, w in weights.items())
    return within + sum(mean(sets[s], sets[t]) for s, t in pairs)


def region_means(features, logits, labels, num_classes):
    """Computes region centers by Eq. 3: weight 1 - confidence if correct, 1 if wrong.

    Returns:
        `(centers, labels)` of the classes that are in an image.
    """
    labels = nearest(labels, features.shape[1:3])
    probability, predicted = logits.detach().softmax(dim=-1).max(dim=-1)
    weight = torch.where(predicted == labels, 1.0 - probability, 1.0)
    members = functional.one_hot(labels.clamp(max=num_classes), num_classes + 1)[..., :-1]
    members = members.to(features.dtype) * weight[..., None].to(features.dtype)
    sums = torch.einsum("bhwn,bhwd->bnd", members, features)
    there = members.sum(dim=(1, 2)) > 0
    classes = torch.arange(num_classes, device=labels.device).expand(len(labels), -1)
    return functional.normalize(sums[there], dim=-1), classes[there]


def region_contrast(maps, others, sizes, samples=None):
    """Computes RegionContrast with a full bank (Eq. 4), summed over the classes of an image."""
    centers, classes = region_means(
        maps["features"], others["logits"], others["labels"], sizes.classes
    )
    slots = torch.arange(sizes.classes, device=DEVICE).repeat_interleave(sizes.capacity)
    loss, valid = info_nce(centers, classes, others["bank"], slots, temperature=0.2)
    return (loss * valid).sum() / len(maps["features"])


def squared_edge_distance(regions):
    """Computes the squared distance of each pixel to the nearest pixel of another region.

    Args:
        regions: int64 `(batch, height, width)`.

    Returns:
        float `(batch, height, width)`.
    """

    def squares(size):
        place = torch.arange(size, device=regions.device, dtype=torch.float32)
        return (place[:, None] - place[None, :]).square()

    far = 1e9
    columns = regions.transpose(1, 2)
    differs = columns[..., :, None] != columns[..., None, :]
    along = torch.where(differs, squares(columns.shape[-1]), far).amin(dim=-1).transpose(1, 2)
    differs = regions[..., :, None] != regions[..., None, :]
    cost = torch.where(differs, 0.0, along[..., None, :])
    return (squares(regions.shape[-1]) + cost).amin(dim=-1)


def boundary_samples(labels, predicted, num_classes, max_samples=4096, min_negatives=64):
    """Draws random positives, and negatives from the error pixels nearest to an edge.

    Returns:
        list of `(class, positives, negatives)`, positions in the flattened labels.
    """
    valid = labels < num_classes
    errors = torch.where(valid & (labels != predicted), predicted, -1)
    distance = squared_edge_distance(errors).reshape(-1)
    labels, errors = labels.reshape(-1), errors.reshape(-1)
    present = labels[labels < num_classes].unique().tolist()
    share = max_samples // max(len(present), 1)

    def some(places, count):
        return places[torch.randperm(len(places), device=places.device)[:count]]

    found = []
    for c in present:
        places = (errors == c).nonzero()[:, 0]
        hard = max(round(0.5 * len(places)), min(len(places), 1))
        negatives = some(places[distance[places].argsort()[:hard]], share)
        if len(places) < min_negatives:
            others = ((labels != c) & (labels < num_classes)).nonzero()[:, 0]
            negatives = torch.cat([negatives, some(others, min_negatives - len(negatives))])
        found.append((c, some((labels == c).nonzero()[:, 0], share), negatives))
    return found


def contextrast(maps, others, sizes, samples=None):
    """Computes Contextrast: shared anchors and pixels of each layer (supplement, Eq. 4-5)."""
    pixels, layer_labels, means = {}, {}, {}
    for stage in LAYER_WEIGHTS:
        x = maps[f"embedding_{stage}"]
        labels = nearest(others["labels"], x.shape[1:3])
        members = functional.one_hot(labels.clamp(max=sizes.classes), sizes.classes + 1)
        members = members.reshape(-1, sizes.classes + 1)[:, :-1].to(x.dtype)
        pixels[stage], layer_labels[stage] = x.reshape(-1, x.shape[-1]), labels
        means[stage] = members.T @ pixels[stage] / members.sum(dim=0).clamp(min=1)[:, None]
    total = 0.0
    for number, (stage, weight) in enumerate(LAYER_WEIGHTS.items()):
        anchors = means[stage]
        if stage != "c5":
            anchors = 0.5 * means[stage] + 0.5 * means["c5"]
        # Not `normalize`: the gradient of an absent class's zeros would be large.
        norm = anchors.square().sum(dim=-1, keepdim=True)
        anchors = anchors * torch.where(norm > 0, norm, 1.0).rsqrt()
        if samples is None:
            labels = layer_labels[stage]
            logits = others["logits"].detach().movedim(-1, 1).float()
            logits = functional.interpolate(logits, labels.shape[1:], mode="bilinear")
            drawn = boundary_samples(labels, logits.argmax(dim=1), sizes.classes)
        else:
            positions, owners, negatives, negative_owners = samples[4 * number : 4 * number + 4]
            drawn = [
                (c, positions[owners == c].long(), negatives[negative_owners == c].long())
                for c in range(sizes.classes)
                if (owners == c).any()
            ]
        losses = []
        for c, positives, negatives in drawn:
            pull = pixels[stage][positives] @ anchors[c] / 0.1
            push = pixels[stage][negatives] @ anchors[c] / 0.1
            losses.append(functional.softplus(push.logsumexp(dim=0) - pull).mean())
        if losses:
            total = total + weight * torch.stack(losses).mean()
    return total


def hard_positions(labels, predicted, num_classes, max_anchors=1024, max_views=100, min_count=5):
    """Draws positions of pixels of each class and image, half wrong and half correct."""
    batch = len(labels)
    labels, predicted = labels.reshape(batch, -1), predicted.reshape(batch, -1)
    members = functional.one_hot(labels.clamp(max=num_classes), num_classes + 1)[..., :-1]
    counts = members.sum(dim=1).cpu()
    groups = [(b, c) for c in range(num_classes) for b in range(batch) if counts[b, c] >= min_count]
    views = max(min(max_anchors // max(len(groups), 1), max_views), 1)
    found = []
    for b, c in groups:
        own = labels[b] == c
        wrong = (own & (predicted[b] != c)).nonzero()[:, 0]
        right = (own & (predicted[b] == c)).nonzero()[:, 0]
        total = min(views, len(wrong) + len(right))
        of_wrong = min(len(wrong), max(total // 2, total - len(right)))
        for places, count in ((wrong, of_wrong), (right, total - of_wrong)):
            order = torch.randperm(len(places), device=labels.device)[:count]
            found.append(places[order] + b * labels.shape[1])
    return torch.cat(found)[:max_anchors]


def pixel_contrast(maps, others, sizes, samples=None, *, memory=False):
    """Computes pixel contrast among the anchors, or with stored pixels and regions."""
    x = maps["embedding_features"]
    labels = nearest(others["labels"], x.shape[1:3])
    if samples is None:
        predicted = others["logits"].argmax(dim=-1)
        positions = hard_positions(labels, predicted, sizes.classes)
    else:
        positions = samples[0][samples[0] >= 0].long()
    anchors = x.reshape(-1, x.shape[-1])[positions]
    anchor_labels = labels.reshape(-1)[positions]
    if not memory:
        loss = info_nce(
            *(anchors, anchor_labels, anchors, anchor_labels), temperature=0.1, exclude_self=True
        )
    else:
        if samples is None:
            bank = others["bank"]
            keys = torch.randint(len(bank), (4096,), device=DEVICE)
            keys, key_labels = bank[keys], keys * sizes.classes // len(bank)
        else:
            keys, rings = samples[2].to(x.dtype), samples[3].long()
            keys, key_labels = keys[rings >= 0], rings[rings >= 0] // 2
        loss = info_nce(anchors, anchor_labels, keys, key_labels, temperature=0.1)
    return mean_of_valid(*loss) * (0.1 / 0.07)


METHODS = {
    "multi_scale": multi_scale,
    "region_contrast": region_contrast,
    "contextrast": contextrast,
    "pixel_contrast": pixel_contrast,
    "pixel_contrast_memory": functools.partial(pixel_contrast, memory=True),
}


def per_pixel(logits, labels):
    """Computes the cross-entropy of each pixel at the labels' size, and the valid mask."""
    logits = functional.interpolate(logits, labels.shape[1:], mode="bilinear")
    loss = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    return loss, labels != IGNORE, logits


def cross_entropy(logits, labels):
    """Averages over the valid pixels; `logits` `(batch, classes, h, w)`."""
    loss, valid, _ = per_pixel(logits, labels)
    return mean_of_valid(loss, valid)


def ohem(logits, labels, *, min_kept, kept=None, threshold=0.7):
    """Computes the cross-entropy of pixels of low probability, or of those in `kept`.

    Returns:
        `(loss, number, distance)`: with `kept`, of how many pixels the choice would be another one
        here, and how far at most their probability is from the threshold; else both are 0.
    """
    loss, valid, _ = per_pixel(logits, labels)
    probability = (-loss.detach()).exp()
    smallest = probability[valid].kthvalue(min(min_kept, int(valid.sum()))).values
    threshold = smallest.clamp(min=threshold)
    own = valid & (probability <= threshold)
    kept = own if kept is None else kept
    others = (probability - threshold).abs()[own != kept]
    distance = others.max() if len(others) else torch.zeros(())
    return mean_of_valid(loss, kept), torch.tensor(len(others)), distance


def lovasz(logits, labels):
    """Computes Lovasz-softmax over the present classes (Berman et al., Alg. 1)."""
    _, valid, logits = per_pixel(logits, labels)
    probability = logits.softmax(dim=1).movedim(1, -1)[valid]
    labels = labels[valid]
    losses = []
    for c in labels.unique().tolist():
        own = (labels == c).to(probability.dtype)
        error, order = (own - probability[:, c]).abs().sort(descending=True)
        own = own[order]
        jaccard = 1.0 - (own.sum() - own.cumsum(0)) / (own.sum() + (1.0 - own).cumsum(0))
        jaccard[1:] = jaccard[1:] - jaccard[:-1].clone()
        losses.append(error @ jaccard)
    return torch.stack(losses).mean()


# --- References -----------------------------------------------------------------------------------


def read_inputs(folder):
    with np.load(folder / "inputs.npz") as file:
        return {key: torch.from_numpy(file[key]).to(DEVICE) for key in file.files}


def write_expected(folder, **arrays):
    arrays = {key: x.detach().double().cpu().numpy() for key, x in arrays.items()}
    np.savez(folder / "expected.npz", **arrays)


def reference_of_objective(method, folder, sizes):
    """Computes loss and gradients of a method in float64, with the samples drawn by kseg."""
    inputs = read_inputs(folder)
    samples = [inputs.pop(key) for key in [f"sample{i}" for i in range(99)] if key in inputs]
    others = {
        key: x.long() if key == "labels" else x.double()
        for key in ("labels", "logits", "bank")
        if (x := inputs.pop(key, None)) is not None
    }
    maps = {key: x.double().requires_grad_() for key, x in inputs.items()}
    method = METHODS[method]
    if method is multi_scale:  # One matrix at a time: other cases need memory, too.
        kernel = functools.partial(checkpoint, info_nce, use_reentrant=False)
        method = functools.partial(multi_scale, kernel=kernel)
    loss = method(maps, others, sizes, samples)
    loss.backward()
    gradients = {f"gradient_{key}": x.grad for key, x in maps.items()}
    write_expected(folder, loss=loss, **gradients)


def reference_of_logit_losses(_, folder, sizes):
    """Computes the losses on logits in float64; OHEM with the pixels kept by kseg."""
    inputs = read_inputs(folder)
    labels, found = inputs["labels"].long(), {}
    kept = sizes.batch * sizes.height * sizes.width // 42
    functions = {
        "cross_entropy": cross_entropy,
        "ohem": functools.partial(ohem, min_kept=kept, kept=inputs["kept"]),
        "lovasz": lovasz,
    }
    for key, function in functions.items():
        x = inputs["logits"].double().requires_grad_()
        loss = function(x.movedim(-1, 1), labels)
        if key == "ohem":
            loss, found["ohem_others"], found["ohem_distance"] = loss
        loss.backward()
        found |= {key: loss, f"{key}_gradient": x.grad}
    write_expected(folder, **found)


# --- Objectives alone -----------------------------------------------------------------------------


def objectives(sizes):
    """Times the plain losses, forward and gradient, in float32 and TF32."""
    for method, function in METHODS.items():
        inputs = shared.method_inputs(method, sizes)
        inputs = {key: torch.from_numpy(x).to(DEVICE) for key, x in inputs.items()}
        others = {"labels": inputs.pop("labels").long(), "logits": inputs.pop("logits")}
        capacity = {"region_contrast": sizes.capacity, "pixel_contrast_memory": 2000}
        if method in capacity:
            rows = shared.bank_entries(sizes.classes * capacity[method], sizes.dim)
            others["bank"] = torch.from_numpy(rows).to(DEVICE)
        maps = {key: x.requires_grad_() for key, x in inputs.items()}

        def call(function=function, maps=maps, others=others):
            loss = function(maps, others, sizes)
            return loss, torch.autograd.grad(loss, list(maps.values()))

        with turn():
            for precision in ("float32", "tf32"):
                torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
                with Peak() as peak:
                    loss, _ = call()
                    synchronize()
                seconds, spread = median_seconds(call, synchronize, sizes)
                emit(
                    **device(),
                    method=method,
                    precision=precision,
                    ms=1e3 * seconds,
                    spread_ms=1e3 * spread,
                    **peak.found,
                    loss=float(loss.detach()),
                )


# --- Training steps -------------------------------------------------------------------------------


class Step:
    """The training step of `_gpu_jax.network`, in bfloat16 by autocast, channels last.

    Attributes:
        model: the network.
    """

    def __init__(self, sizes, name, method, *, compiled=False):
        import _gpu_torch_networks

        self.method, self.sizes = method, sizes
        self._objective = METHODS.get(method)
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        weights = SCALE_WEIGHTS
        if method == "multi_scale" and name == "deeplabv3_r101":  # c4 is of the size of c3.
            weights = {"c2": 1.0, "c3": 0.7, "c5": 0.7}
            self._objective = functools.partial(
                multi_scale, weights=weights, pairs=(("c2", "c5"), ("c2", "c3"))
            )
        stages = {
            "ce": [],
            "multi_scale": list(weights),
            "contextrast": list(LAYER_WEIGHTS),
            "region_contrast": [],
        }.get(method, ["features"])
        self.model = _gpu_torch_networks.build(
            name,
            sizes,
            projections=stages,
            hidden_layers=2 if method == "multi_scale" else 1,
        )
        self.model = self.model.to(DEVICE, memory_format=torch.channels_last).train()
        self._network = torch.compile(self.model) if compiled else self.model
        labels = shared.street_labels(sizes)
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (*labels.shape, 3), dtype="uint8")
        self._image = torch.from_numpy(image).to(DEVICE).movedim(-1, 1)
        self._labels = torch.from_numpy(labels).to(DEVICE).long()
        self._optimizer = torch.optim.SGD(
            self.model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4
        )
        capacity = {"region_contrast": sizes.capacity, "pixel_contrast_memory": 2000}
        self._bank = None
        if method in capacity:
            width = self.model.width if method == "region_contrast" else sizes.dim
            rows = shared.bank_entries(sizes.classes * capacity[method], width)
            self._bank = torch.from_numpy(rows).to(DEVICE)

    def __call__(self):
        with torch.autocast(DEVICE.type, torch.bfloat16):
            outputs = self._network(self._image)
        logits = outputs["logits"].float()
        loss = cross_entropy(logits, self._labels)
        if "aux_logits" in outputs:
            loss = loss + 0.4 * cross_entropy(outputs["aux_logits"].float(), self._labels)
        if self.method != "ce":
            maps = {
                key: x.float().movedim(1, -1)
                for key, x in outputs.items()
                if key == "features" or key.startswith("embedding_")
            }
            size = (maps.get("embedding_features", maps.get("features"))).shape[1:3]
            logits = functional.interpolate(logits.detach(), size, mode="bilinear")
            others = {
                "labels": self._labels,
                "logits": logits.movedim(1, -1),
                "bank": self._bank,
            }
            loss = loss + 0.1 * self._objective(maps, others, self.sizes)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        if self._bank is not None:  # What this step brings goes over the oldest rows.
            with torch.no_grad():
                rows = maps.get("embedding_features", maps["features"])
                rows, _ = region_means(rows, others["logits"], self._labels, self.sizes.classes)
                self._bank[: len(rows)] = rows
        return loss.detach()


def time_step(sizes, name, method, *, compiled=False):
    started = time.perf_counter()
    step = Step(sizes, name, method, compiled=compiled)
    found = {"build_s": time.perf_counter() - started}
    if compiled:
        started = time.perf_counter()
        step()
        synchronize()
        found["compile_s"] = time.perf_counter() - started
        if DEVICE.type == "cuda":  # While it waits, others need the memory.
            torch.cuda.empty_cache()
    with turn():
        with Peak() as peak:
            first = float(step())
        seconds, spread = median_seconds(step, synchronize, sizes, warm_up=2)
        emit(
            **device(),
            network=name,
            method=method,
            mode="torch.compile" if compiled else "eager",
            step_ms=1e3 * seconds,
            spread_ms=1e3 * spread,
            **peak.found,
            weights=sum(p.numel() for p in step.model.parameters()),
            **found,
            first_loss=first,
            last_loss=float(step()),
        )


def network(sizes, name, *methods):
    """Times the training step of a network, eagerly, with one method after the other."""
    for method in methods:
        time_step(sizes, name, method)


def compiled_network(sizes, name):
    """Times the training step with cross-entropy, compiled."""
    time_step(sizes, name, "ce", compiled=True)


if __name__ == "__main__":
    shared.die_with_parent()
    kind, what, folder, *rest = sys.argv[1:]
    references = {"objective": reference_of_objective, "logit_losses": reference_of_logit_losses}
    references[kind](what, pathlib.Path(folder), shared.TOY if rest else shared.PAPERS)
