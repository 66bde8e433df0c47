"""The fault list: command lines with wrong types, values, names, files, folders and damaged artefacts.

A command line is a list of words. In braces: `{images}` sound images, `{image}` one of them, `{run}` and `{study}` a
copy of its own each time, `{run/FILE:HOW}` one that is damaged, `{data/KIND}`, `{image/KIND}`, `{recipe/KEYS}`, `{out}`
a new path. A file may have as many bytes as `FULL` says, and no more, while one of `writers` runs.
"""

from collections.abc import Iterable, Iterator
from itertools import product

from fault_artefacts import DATA, IMAGES, SMALL

Case = tuple[str, ...]
NUMBERS = ("abc", "nan", "inf", "-1", "99999999999999999999")
TRAIN = ("train", "--data", "{images}", *SMALL, "--out", "{out}")
EVALUATE = ("evaluate", "{run}", "--data", "{images}", "--attack", "fgsm")
EXPLAIN = ("explain", "{run}", "--data", "{images}", "--sample", "0", "--corruption", "jpeg", "--method", "gradcam")
PREDICT = ("predict", "{run}", "{image}", "--out", "{out}")
STUDY = ("study", "{recipe/{}}", "--data", "{images}", "--out", "{out}")
TINY = ("study", "{base}/tiny.yaml", "--data", "{images}", "--out")
PHANTOM = ("data", "phantom", "{out}", "--per-class", "2", "--size", "32")
SHEET = ("data", "corruptions", "{out}.png", "--size", "32")
CHECK = ("data", "check", "{images}", "--no-probes")
SETS = """a = a= =b model=3 training.epochs=[1 training.epochs=two defence.name=x model.normalisation=layer
training.augment=3 x.y.z=1 training.learning_rate=.inf training.weight_decay=.inf
training.warmup_epochs=.inf training.weight_decay=.nan training.guidance=.inf seed=-5 seed=1.5
data.size=1000000 seed=99999999999999999999 defence.beta=.inf defence.epsilon=.nan training.batch_size=1"""
KEYS = """training: {epoch: 3} | training: {epochs: .inf} | training: {epochs: 0} | training: {batch_size: 1.5}
training: {patience: -1} | seeds: [] | seeds: [-1] | seeds: [0, 0] | seeds: 3 | models: [] | models: [nobody]
models: [test_resnet, test_resnet] | models: 3 | models: [{name: test_resnet, weights: gone.safetensors}]
models: [{name: test_resnet, weights: none, x: 1}] | models: [{name: resnet34, weights: imagenet}]
models: [{name: test_resnet, weights: none, training: 3}] | defences: [fgms]
defences: [{name: fgsm, epsilon: .inf}] | defences: [{name: fgsm, beta: 3}] | defences: [fgsm, fgsm]
defences: [standard] | data: {size: 1000000} | data: {size: 32, layout: nobody}
data: {size: 32, splits: {train: Train, test: Gone}} | data: {size: 32, labels: {Nobody: x}}
data: {size: 32, columns: nobody} | data: {size: 32, labels: {COVID-19: null, Non-COVID: null}}
data: {size: 32, images: gone} | evaluation: {attacks: [{name: nobody}]} | evaluation: {batch_size: 0}
evaluation: {attacks: [{name: transfer, surrogate: gone}]} | evaluation: {bootstrap: .inf}
evaluation: {attacks: [{name: fgsm, epsilons: [.nan]}]} | evaluation: {corruptions: {names: [fog]}}
evaluation: {attacks: [{name: pgd, steps: 99999999999999999999999}, {name: pgd, restarts: 0}]}
explanation: {methods: [gradcm]} | explanation: {methods: ['layercam@layer9']} | explanation: {sample: -1}
explanation: {severity: 9} | selection: {count: 0} | selection: {by: luck} | name: '' | nobody: 3"""
RUN_FILES = ("run.yaml", "model.safetensors", "training.json", "history.csv", "predictions.parquet", "metrics.json")
RUN_FILES += ("validation.parquet",)
HOW = ("gone", "empty", "cut", "noise", "text", "list", "folder", "loop", "closed", "fifo")
NOWHERE = ("{base}/nowhere", "{image}", "/dev/null", "", "{data/empty}", "a\x01\n" * 2000)
BAD_OUT = ("/dev/null", "/dev/full/x", "/proc/out", "/sys/out", "{image}", "{image}/x", "{closed}/x", "x" * 5000, "")


def cases() -> list[Case]:
    """All of them, in one order."""
    return [tuple(map(str, words)) for part in (_numbers, _names, _places, _recipes, _damaged) for words in part()]


def _each(words: Case, *parts: Iterable[str]) -> Iterator[Case]:
    """Yield `words` with each combination of `parts` behind them."""
    for chosen in product(*parts):
        yield (*words, *chosen)


def _numbers() -> Iterator[Case]:
    """Wrong types and values of every number."""
    train = ("--seed", "--epochs", "--batch-size", "--learning-rate", "--patience", "--epsilon", "--ramp")
    yield from _each((*TRAIN, "--size"), (*NUMBERS, "1000000"))
    yield from _each(TRAIN, (*train, "--clean-weight"), NUMBERS)
    yield from _each(EVALUATE, ("--epsilon", "--steps", "--queries", "--severity"), NUMBERS)
    yield from _each(EXPLAIN, ("--epsilon", "--severity", "--sample"), NUMBERS)
    yield from _each(PREDICT, ("--epsilon",), NUMBERS)
    yield from _each(PHANTOM, ("--per-class", "--size", "--seed"), (*NUMBERS, "-3", "0"))
    yield (*PHANTOM, "--size", "1000000")
    yield from _each(SHEET, ("--size", "--seed"), NUMBERS)


def _names() -> Iterator[Case]:
    """Names that nobody knows, keys that are not there, options that are missing or twice."""
    for model in ("ResNet5", "", "test_resnet+", "+", "test_resnet+nobody", "../etc", "a\nb", "{image}"):
        yield ("train", "--data", "{images}", "--model", model, "--weights", "none", "--out", "{out}")
    unknown = ("nobody", "", "{image}", "{base}/gone.safetensors", "/dev/zero", "ÿ\ud800x")
    yield from _each(TRAIN, ("--defence", "--weights", "--precision", "--background"), unknown)
    yield from _each((*TRAIN, "--set"), (*SETS.split(), "data.splits={train: Gone}"))
    for value in ("Nobody=Normal", "Normal=Nobody", "Normal=", "x", "=", "Normal=Normal=Normal"):
        for words in (TRAIN, EVALUATE):
            yield (*words, "--label", value)
    for value in ("covid", "path=", "=x", "path=99", "word=class", "path=Picture"):
        for words in (TRAIN, ("data", "check", "{data/list-columns}"), EVALUATE):
            yield (*words, "--column", value)
    yield from _each(EVALUATE[:-1], ("pdg", "", "worst", "transfer", "pgd-l2 "))
    for words in (EVALUATE, EXPLAIN):
        yield from _each((*words, "--corruption"), ("fog", "", "all,jpeg"))
        yield from _each((*words, "--split"), ("Tset", "", "train", "All", "../Test"))
    methods = ("gradcm", "", "layercam@", "layercam@layer9", "layercam@-99", "@", "activation@x", "gradcam@@")
    yield from _each(EXPLAIN[:-1], methods)
    yield from _each((*EVALUATE[:-1], "transfer", "--surrogate"), NOWHERE)
    shortcuts = ("marker", "marker=", "marker=2", "marker=nan", "moon=0.5", "=0.5", "marker=0.5=1", "")
    yield from _each((*PHANTOM, "--shortcut"), shortcuts)
    for line in ("train", "evaluate", "explain {run}", "study", "predict {run}", "report", "data", "data check"):
        yield tuple(line.split())
    yield from (("nobody",), ("--nobody",), ("train", "--nobody"), ("data", "nobody"))
    yield from _each(("data", "download"), ("covidqu2", "", "nih"))
    for recipe in ("quik", "", "quick.yml", "{base}/gone.yaml", "../quick", "{image}", "{data/empty}"):
        yield ("study", recipe, *STUDY[2:])
    yield from _each((*STUDY, "--engine"), ("ray2", "", "Local"))


def _places() -> Iterator[Case]:
    """Files and folders that are not what they should be, to read from and to write to."""
    for place in NOWHERE:
        yield ("data", "check", place)
        yield ("train", "--data", place, *TRAIN[3:])
        yield ("evaluate", "{run}", "--data", place, "--attack", "fgsm")
        yield ("explain", "{run}", "--data", place)
        yield ("evaluate", place, "--data", "{images}")
        yield ("explain", place, "--data", "{images}")
        yield ("predict", place, "{image}")
        yield ("report", place)
        yield (*STUDY[:3], place, *STUDY[4:])
    for kind in DATA:
        data = f"{{data/{kind}}}"
        yield ("data", "check", data, "--no-probes")
        if kind not in ("device", "socket", "dangling", "folder-as-image", "text", "list-folder", "tiny-images"):
            yield ("train", "--data", data, *SMALL, "--set", "training.batch_size=2", "--out", "{out}")
    for kind in ("fifo", "mask-fifo", "loop", "one-class", "list-semicolon", "missing-in-test"):
        yield ("evaluate", "{run}", "--data", f"{{data/{kind}}}", "--attack", "fgsm")
    for kind in ("fifo", "loop", "not-utf8", "control", "closed", "one-class", "missing-in-val", "mask-fifo"):
        yield ("data", "check", f"{{data/{kind}}}", "--html", "{out}.html", "--clean", "{out}.csv")
        yield (*STUDY[:3], f"{{data/{kind}}}", *STUDY[4:])
    for kind in IMAGES:
        yield ("predict", "{run}", f"{{image/{kind}}}", "--out", "{out}")
    for kind in ("empty.png", "fifo.png", "zero.png", "loop.png", "folder.png", "closed.png", "claims.png"):
        yield (*SHEET, "--image", f"{{image/{kind}}}")
    for out in BAD_OUT:
        for words in (TRAIN, STUDY, PREDICT):
            yield (*words[:-1], out)
        yield ("data", "phantom", out, *PHANTOM[3:])
        yield ("data", "corruptions", f"{out}/x.png", *SHEET[3:])
        yield (*CHECK, "--html", f"{out}/x.html")
        yield (*CHECK, "--clean", f"{out}/x.csv")


def _recipes() -> Iterator[Case]:
    """Recipes that cannot be, as YAML."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join('*' + a for _ in range(9))}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    texts = (
        "raw:",
        "raw:name: [x",
        "raw:\x00\x01",
        "raw:name: x\nmodels: []",
        f"raw:{bomb}models: *i",
        "raw:&a [*a]",
        "raw:name: !!python/object/apply:os.system [echo]",
        "raw:\udcff\udcfe",
        "raw:" + "[" * 3000,
        "raw:name: &a {b: *a}",
        "raw:name: x\nname: y\nmodels: [test_resnet]",
    )
    for text in (*texts, *(f"{{{keys.strip()}}}" for keys in KEYS.replace("\n", "|").split("|"))):
        yield ("study", "{recipe/" + text + "}", *STUDY[2:])


def _damaged() -> Iterator[Case]:
    """Runs and studies with one file damaged."""
    for file, how in product(RUN_FILES, HOW):
        yield ("evaluate", f"{{run/{file}:{how}}}", *EVALUATE[2:])
    files: Case = ("run.yaml", "model.safetensors", "training.json", "metrics.json")
    for file, how in product(files, ("cut", "noise", "list", "loop", "closed", "folder")):
        yield ("predict", f"{{run/{file}:{how}}}", *PREDICT[2:])
    files = ("model.safetensors", "metrics.json", "saliency.parquet")
    for file, how in product(files, ("cut", "closed", "list", "folder")):
        yield ("explain", f"{{run/{file}:{how}}}", *EXPLAIN[2:])
    names = (*RUN_FILES, "saliency.parquet", "example_maps.npz")
    files = ("study.yaml", "study.json", *(f"runs/test_resnet-standard-s0/{name}" for name in names))
    for file, how in product(files, ("gone", "empty", "noise", "list", "folder", "closed")):
        yield ("report", f"{{study/{file}:{how}}}")
    for file, how in product(files, ("gone", "cut", "closed")):
        yield (*TINY, f"{{study/{file}:{how}}}")


FULL = (0, 300, 3_000, 30_000)


def writers() -> list[Case]:
    """Every command that writes, on a disk that fills."""
    return [
        TRAIN,
        EVALUATE,
        EXPLAIN,
        PREDICT,
        (*TINY, "{study/metrics.json:gone}"),
        (*TINY, "{out}"),
        ("report", "{study}"),
        PHANTOM,
        SHEET,
        (*CHECK, "--html", "{out}.html"),
        (*CHECK, "--clean", "{out}.csv"),
        (*CHECK, "--clean", "{out}.parquet"),
    ]
