"""The fault list: command lines with wrong types, values, names, files, folders and damaged artefacts.

A command line is a list of words. In braces: `{images}` sound images, `{image}` one of them, `{run}` and `{study}` a
copy of its own each time, `{run/FILE:HOW}` one that is damaged, `{data/KIND}`, `{image/KIND}`, `{recipe/KEYS}`, `{out}`
a new path. `full`: every file that is written may have so many bytes and no more, as on a disk that fills.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fault_artefacts import DATA, IMAGES, SMALL


@dataclass(frozen=True)
class Case:
    """One command line, and how large a file may become while it runs."""

    words: tuple[str, ...]
    full: int | None = None

    def __str__(self) -> str:
        text = " ".join(w if len(w) < 60 else w[:57] + "..." for w in self.words)
        return text if self.full is None else f"[disk full after {self.full} bytes] {text}"


NUMBERS = ("abc", "nan", "inf", "-1", "99999999999999999999")
TRAIN = ("train", "--data", "{images}", *SMALL, "--out", "{out}")
EVALUATE = ("evaluate", "{run}", "--data", "{images}", "--attack", "fgsm")
EXPLAIN = ("explain", "{run}", "--data", "{images}", "--sample", "0", "--corruption", "jpeg", "--method", "gradcam")
PREDICT = ("predict", "{run}", "{image}", "--out", "{out}")
STUDY = ("study", "{recipe/{}}", "--data", "{images}", "--out", "{out}")
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
    found = [
        Case(tuple(map(str, words))) for part in (_numbers, _names, _places, _recipes, _damaged) for words in part()
    ]
    return [*found, *_full()]


def _numbers() -> Iterator[tuple[str, ...]]:
    """Wrong types and values of every number."""
    train = ("--size", "--seed", "--epochs", "--batch-size", "--learning-rate", "--patience", "--epsilon", "--ramp")
    for option in (*train, "--clean-weight"):
        for value in (*NUMBERS, *(("1000000",) if option == "--size" else ())):
            yield (*TRAIN, option, value)
    for option in ("--epsilon", "--steps", "--queries", "--severity"):
        for value in NUMBERS:
            yield (*EVALUATE, option, value)
    for option in ("--epsilon", "--severity", "--sample"):
        for value in NUMBERS:
            yield (*EXPLAIN, option, value)
    for value in NUMBERS:
        yield (*PREDICT, "--epsilon", value)
    for option in ("--per-class", "--size", "--seed"):
        for value in (*NUMBERS, "-3", "0", *(("1000000",) if option == "--size" else ())):
            yield ("data", "phantom", "{out}", "--per-class", "2", "--size", "32", option, value)
    for option in ("--size", "--seed"):
        for value in NUMBERS:
            yield ("data", "corruptions", "{out}.png", "--size", "32", option, value)


def _names() -> Iterator[tuple[str, ...]]:
    """Names that nobody knows, keys that are not there, options that are missing or twice."""
    for model in ("ResNet5", "", "test_resnet+", "+", "test_resnet+nobody", "../etc", "a\nb", "{image}"):
        yield ("train", "--data", "{images}", "--model", model, "--weights", "none", "--out", "{out}")
    for option in ("--defence", "--weights", "--precision", "--background"):
        for value in ("nobody", "", "{image}", "{base}/gone.safetensors", "/dev/zero", "ÿ\ud800x"):
            yield (*TRAIN, option, value)
    for value in (*SETS.split(), "data.splits={train: Gone}"):
        yield (*TRAIN, "--set", value)
    for value in ("Nobody=Normal", "Normal=Nobody", "Normal=", "x", "=", "Normal=Normal=Normal"):
        yield (*TRAIN, "--label", value)
        yield (*EVALUATE, "--label", value)
    for value in ("covid", "path=", "=x", "path=99", "word=class", "path=Picture"):
        yield (*TRAIN, "--column", value)
        yield ("data", "check", "{data/list-columns}", "--column", value)
        yield (*EVALUATE, "--column", value)
    for value in ("pdg", "", "worst", "transfer", "pgd-l2 "):
        yield ("evaluate", "{run}", "--data", "{images}", "--attack", value)
    for value in ("fog", "", "all,jpeg"):
        yield (*EVALUATE, "--corruption", value)
        yield (*EXPLAIN, "--corruption", value)
    for value in ("gradcm", "", "layercam@", "layercam@layer9", "layercam@-99", "@", "activation@x", "gradcam@@"):
        yield ("explain", "{run}", "--data", "{images}", "--sample", "0", "--corruption", "jpeg", "--method", value)
    for value in ("Tset", "", "train", "All", "../Test"):
        yield (*EVALUATE, "--split", value)
        yield (*EXPLAIN, "--split", value)
    for value in NOWHERE:
        yield ("evaluate", "{run}", "--data", "{images}", "--attack", "transfer", "--surrogate", value)
    for value in ("marker", "marker=", "marker=2", "marker=nan", "moon=0.5", "=0.5", "marker=0.5=1", ""):
        yield ("data", "phantom", "{out}", "--per-class", "2", "--size", "32", "--shortcut", value)
    for words in (("train",), ("evaluate",), ("explain", "{run}"), ("study",), ("predict", "{run}"), ("report",)):
        yield words
    for words in (("data",), ("data", "check"), ("nobody",), ("--nobody",), ("train", "--nobody"), ("data", "nobody")):
        yield words
    for name in ("covidqu2", "", "nih"):
        yield ("data", "download", name)
    for recipe in ("quik", "", "quick.yml", "{base}/gone.yaml", "../quick", "{image}", "{data/empty}"):
        yield ("study", recipe, "--data", "{images}", "--out", "{out}")
    for engine in ("ray2", "", "Local"):
        yield (*STUDY, "--engine", engine)


def _places() -> Iterator[tuple[str, ...]]:
    """Files and folders that are not what they should be, to read from and to write to."""
    for place in NOWHERE:
        yield ("data", "check", place)
        yield ("train", "--data", place, *SMALL, "--out", "{out}")
        yield ("evaluate", "{run}", "--data", place, "--attack", "fgsm")
        yield ("explain", "{run}", "--data", place)
        yield ("evaluate", place, "--data", "{images}")
        yield ("explain", place, "--data", "{images}")
        yield ("predict", place, "{image}")
        yield ("report", place)
        yield ("study", "{recipe/{}}", "--data", place, "--out", "{out}")
    for kind in DATA:
        data = f"{{data/{kind}}}"
        yield ("data", "check", data, "--no-probes")
        if kind not in ("device", "socket", "dangling", "folder-as-image", "text", "list-folder", "tiny-images"):
            yield ("train", "--data", data, *SMALL, "--set", "training.batch_size=2", "--out", "{out}")
    for kind in ("fifo", "mask-fifo", "loop", "one-class", "list-semicolon", "missing-in-test"):
        yield ("evaluate", "{run}", "--data", f"{{data/{kind}}}", "--attack", "fgsm")
    for kind in ("fifo", "loop", "not-utf8", "control", "closed", "one-class", "missing-in-val", "mask-fifo"):
        yield ("data", "check", f"{{data/{kind}}}", "--html", "{out}.html", "--clean", "{out}.csv")
        yield ("study", "{recipe/{}}", "--data", f"{{data/{kind}}}", "--out", "{out}")
    for kind in IMAGES:
        yield ("predict", "{run}", f"{{image/{kind}}}", "--out", "{out}")
    for kind in ("empty.png", "fifo.png", "zero.png", "loop.png", "folder.png", "closed.png", "claims.png"):
        yield ("data", "corruptions", "{out}.png", "--size", "32", "--image", f"{{image/{kind}}}")
    for out in BAD_OUT:
        yield ("train", "--data", "{images}", *SMALL, "--out", out)
        yield ("study", "{recipe/{}}", "--data", "{images}", "--out", out)
        yield ("predict", "{run}", "{image}", "--out", out)
        yield ("data", "phantom", out, "--per-class", "2", "--size", "32")
        yield ("data", "corruptions", f"{out}/x.png", "--size", "32")
        yield ("data", "check", "{images}", "--no-probes", "--html", f"{out}/x.html")
        yield ("data", "check", "{images}", "--no-probes", "--clean", f"{out}/x.csv")


def _recipes() -> Iterator[tuple[str, ...]]:
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
        yield ("study", "{recipe/" + text + "}", "--data", "{images}", "--out", "{out}")


def _damaged() -> Iterator[tuple[str, ...]]:
    """Runs and studies with one file damaged."""
    for file in RUN_FILES:
        for how in HOW:
            run = f"{{run/{file}:{how}}}"
            yield ("evaluate", run, "--data", "{images}", "--attack", "fgsm")
    for file in ("run.yaml", "model.safetensors", "training.json", "metrics.json"):
        for how in ("cut", "noise", "list", "loop", "closed", "folder"):
            yield ("predict", f"{{run/{file}:{how}}}", "{image}", "--out", "{out}")
    for file in ("model.safetensors", "metrics.json", "saliency.parquet"):
        for how in ("cut", "closed", "list", "folder"):
            yield ("explain", f"{{run/{file}:{how}}}", *EXPLAIN[2:])
    runs = [f"runs/test_resnet-standard-s0/{name}" for name in (*RUN_FILES, "saliency.parquet", "example_maps.npz")]
    for file in ("study.yaml", "study.json", *runs):
        for how in ("gone", "empty", "noise", "list", "folder", "closed"):
            yield ("report", f"{{study/{file}:{how}}}")
    for file in ("study.yaml", "study.json", *runs):
        for how in ("gone", "cut", "closed"):
            yield ("study", "{base}/tiny.yaml", "--data", "{images}", "--out", f"{{study/{file}:{how}}}")


def _full() -> Iterator[Case]:
    """A disk that fills at every write of every command that writes."""
    commands: tuple[tuple[str, ...], ...] = (
        ("train", "--data", "{images}", *SMALL, "--out", "{out}"),
        ("evaluate", "{run}", "--data", "{images}", "--attack", "fgsm"),
        ("explain", "{run}", *EXPLAIN[2:]),
        ("predict", "{run}", "{image}", "--out", "{out}"),
        ("study", "{base}/tiny.yaml", "--data", "{images}", "--out", "{study/metrics.json:gone}"),
        ("study", "{base}/tiny.yaml", "--data", "{images}", "--out", "{out}"),
        ("report", "{study}"),
        ("data", "phantom", "{out}", "--per-class", "2", "--size", "64"),
        ("data", "corruptions", "{out}.png", "--size", "32"),
        ("data", "check", "{images}", "--no-probes", "--html", "{out}.html"),
        ("data", "check", "{images}", "--no-probes", "--clean", "{out}.csv"),
        ("data", "check", "{images}", "--no-probes", "--clean", "{out}.parquet"),
    )
    for words in commands:
        for size in (0, 300, 3_000, 30_000):
            yield Case(words, size)
