"""Every data set by name: a DatasetSpec says what its task is, how its scenes are made, and what the docs tell of it.

Gymnasium ids, environment classes, choices of `dataset=`, default probes and documentation pages follow from the specs.
Your own data set is one more of them: see `canvit_gym.register_dataset`. This module imports neither torch nor an
image library, so that `import canvit_gym` stays cheap: what makes scenes is named by a string, like Gymnasium's entry
points.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from canvit_gym.backbone.load import Backbone
    from canvit_gym.scenes.source import SceneSource

Unreadable = Literal["raise", "skip"]


@dataclass(frozen=True, kw_only=True)
class SceneRequest:
    """What an environment asks of a data set."""

    split: str
    num_scenes: int | None
    """At most so many; None: as many as the split has, or the data set's default."""
    scene_size_px: Callable[[], int]
    """The size that the checkpoint wants. Asked for only where the data set has no size of its own: it loads the
    checkpoint."""
    root: str | None = None
    tuning_scenes: int = 0
    workers: int | None = None
    unreadable: Unreadable = "raise"
    cache: bool | str = False
    pin_memory: bool = False
    mask_values: Mapping[str, str | None] | None = None


MakeScenes = Callable[[SceneRequest], "SceneSource"]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes that a documentation page tells: those of the checkpoint that the id has by default."""

    scene_px: int
    glimpse_px: int
    grid: int
    canvas_dim: int
    cls_dim: int


NANO_GEOMETRY = Geometry(scene_px=128, glimpse_px=32, grid=16, canvas_dim=128, cls_dim=128)
CANVIT_B_GEOMETRY = Geometry(scene_px=512, glimpse_px=128, grid=32, canvas_dim=1024, cls_dim=768)


@dataclass(frozen=True, kw_only=True)
class DatasetPage:
    """What the documentation page of a data set's environment says of its own."""

    headline: str
    scenes: str
    classes: str = "the classes"
    geometry: Geometry = NANO_GEOMETRY
    example: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the examples."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Keyword -> what it means here, where the general words of EnvConfig do not say enough."""


@dataclass(frozen=True, kw_only=True)
class OnDisk:
    """Where a data set on disk is looked for."""

    layout: str
    """What its directory holds, in words."""
    variable: str | None = None
    """Environment variable that holds the root where none is given."""
    takes_mask_values: bool = False
    """Whether `mask_values` may say what the values of its masks stand for."""


@dataclass(frozen=True, kw_only=True)
class Skill:
    """What an environment of the suite isolates, and whom a policy is compared with there: see canvit_gym.suite.

    Policies are named as `make_policy` takes them. Their scales are those that did best on training scenes
    (experiments/studies/suite_headroom.py), of every kind of policy.
    """

    name: str
    """In a few words: "coverage"."""
    opponents: tuple[str, ...]
    """Hand-coded policies that use no labels, the best one on training scenes first."""
    ceiling: str
    """The policy that is told where to look, or when to stop."""
    baseline: str = "random"
    """The policy without any skill."""
    stop_confidence: float | None = None
    """Where episodes can be stopped: opponents stop as soon as a reading is as confident as this."""
    ceiling_stops_when_right: bool = False
    """Whether the ceiling is told when the reading is right; else it stops as opponents do."""


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One data set, and the environment id that looks at it."""

    name: str
    """The value of `dataset=`."""
    env_id: str
    """The Gymnasium id: "namespace/Name-v0"."""
    task: str
    """Name of an entry of canvit_gym.tasks.TASKS."""
    splits: tuple[str, ...]
    make_scenes: MakeScenes | str
    """Makes the scenes of a split, or "module:function" where it is."""
    page: DatasetPage
    default_probe: Callable[["Backbone"], str | None] = lambda backbone: None
    """The probe of a backbone where `probe=` is not passed; None where there is none."""
    probe_cure: str = ""
    """What else than passing a probe helps where there is none, to end a sentence: " or use checkpoint='nano'"."""
    env_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the id that differ from EnvConfig's defaults. JSON-able."""
    on_disk: OnDisk | None = None
    """None: scenes are generated."""
    skill: Skill | None = None
    """What the suite measures with it; None: it is not part of the suite."""

    @property
    def class_name(self) -> str:
        """Of the environment class: FashionSegmentationEnv."""
        return env_name(self.env_id) + "Env"

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the id."""
        return {"dataset": self.name, **self.env_defaults}

    def scenes(self, request: SceneRequest) -> "SceneSource":
        """The scenes of a split."""
        if not isinstance(self.make_scenes, str):
            return self.make_scenes(request)
        module, _, function = self.make_scenes.partition(":")
        return getattr(import_module(module), function)(request)


def env_name(env_id: str) -> str:
    """The name in an id: "FashionSegmentation" of "CanViT/FashionSegmentation-v0"."""
    return env_id.rpartition("/")[2].partition("-")[0]


ADE20K_LAYOUT = (
    "images/training, images/validation (JPEG), annotations/training and annotations/validation (PNG), as "
    "ADEChallengeData2016 has them"
)
IMAGENET_LAYOUT = "train/ and val/, each with the 1,000 class folders (n01440764, ...)"
UNLABELLED_LAYOUT = "images, in any folders, or train/ and val/ (and test/) with images in each"
IMAGE_FOLDER_LAYOUT = "a folder of images per class, or train/ and val/ (and test/) with these folders in each"
SEGMENTATION_LAYOUT = (
    "images/ and masks/ with a mask PNG of the same name for every image (below train/ and val/ in both, or not), "
    "and classes.txt with a class name per line, or classes.json with a list of names"
)

_FASHION_SPLITS = ("training", "validation", "test")
_BENCHMARK_SPLITS = ("training", "validation", "tuning")
_FOLDER_SPLITS = ("training", "validation", "test", "tuning")
_OWN_PROBE = "`canvit-gym fit-probe` fits one on your own classes"


def _fashion(flavour: str) -> MakeScenes:
    def make(request: SceneRequest) -> "SceneSource":
        from canvit_gym.scenes.prepared import fashion_scenes

        return fashion_scenes(request, flavour=flavour)

    return make


def _nano_probe(name: str) -> Callable[["Backbone"], str | None]:
    """The shipped probe of this name, for the shipped checkpoint on its own canvas."""
    return lambda backbone: name if (backbone.name, backbone.canvas_grid) == ("nano", NANO_GEOMETRY.grid) else None


def _ade20k_probe(backbone: "Backbone") -> str:
    from canvit_gym.backbone.hub import ade20k_probe

    return ade20k_probe(backbone.source, scene_size_px=backbone.scene_size_px, canvas_grid=backbone.canvas_grid)


_NANO_CURE = f" or use checkpoint='nano' with canvas_grid={NANO_GEOMETRY.grid}"
_FASHION_COUNT = {"num_scenes": "how many of the split's scenes; None: 8192, 512 or 1000"}

_NO_UNCERTAINTY = ["canvas", "acuity", "viewpoint", "time"]
"""Observations of a reconstruction: features that are predicted say nothing of how sure they are."""
_TEACHER = (
    "The teacher is the network that the checkpoint was pretrained with. nano's ships with it. That of the released "
    "CanViT-B is DINOv3, facebook/dinov3-vitb16-pretrain-lvd1689m on the Hub, which asks for a login and for its "
    "licence to be accepted; it needs pip install 'canvit-gym[teacher]'. It sees the whole scene once, when the scene "
    "is loaded. Predicted and true features of every cell are standardized as in pretraining and compared by their "
    "cosine."
)
_TEACHER_PROBE = (
    "the teacher: its name on the Hub, or a directory; None: the one that the checkpoint was pretrained with"
)

_BUILT_IN = (
    DatasetSpec(
        name="fashion-segmentation",
        env_id="CanViT/FashionSegmentation-v0",
        task="segmentation",
        splits=_FASHION_SPLITS,
        make_scenes=_fashion("segmentation"),
        default_probe=_nano_probe("nano-segmentation-probe"),
        probe_cure=_NANO_CURE,
        skill=Skill(
            name="coverage",
            opponents=(
                "item_probability(scale=0.3)",
                "entropy_greedy(scale=(0.5, 0.25))",
                "saliency(scale=0.5)",
                "coarse_to_fine",
            ),
            ceiling="box_locator(factor=1.25, jitter=0.2)",
        ),
        page=DatasetPage(
            headline="Find out which pixels of a scene belong to which garment.",
            scenes="""
                A scene of 128 x 128 px holds three to five (rarely two) Fashion-MNIST items of 26 to 44 px, tinted,
                none overlapping, over textured clutter with fragments of other items. At the first glimpse of the full
                scene an item is 6 to 11 px wide: where it is can be seen, what it is can hardly.
                """,
            classes="eleven classes (background and ten garments)",
            example={"num_scenes": 16},
            arguments=_FASHION_COUNT,
        ),
    ),
    DatasetSpec(
        name="fashion-classification",
        env_id="CanViT/FashionClassification-v0",
        task="classification",
        splits=_FASHION_SPLITS,
        make_scenes=_fashion("classification"),
        default_probe=_nano_probe("nano-classification-probe"),
        probe_cure=_NANO_CURE,
        skill=Skill(
            name="fine detail",
            opponents=("item_probability(scale=(0.34, 0.24))", "saliency(scale=0.3)", "coarse_to_fine"),
            ceiling="box_locator(factor=1.0, jitter=0.2)",
        ),
        page=DatasetPage(
            headline="Find the one whole garment of a scene and name it.",
            scenes="""
                A scene of 128 x 128 px holds one whole Fashion-MNIST item of 26 to 44 px among eight to twelve
                fragments of others, over textured clutter. Its class, one of ten, is the label.
                """,
            classes="one of ten classes",
            example={"num_scenes": 16},
            arguments=_FASHION_COUNT,
        ),
    ),
    DatasetSpec(
        name="fashion-search",
        env_id="CanViT/FashionSearch-v0",
        task="search",
        splits=_FASHION_SPLITS,
        make_scenes=_fashion("search"),
        default_probe=_nano_probe("nano-segmentation-probe"),
        probe_cure=_NANO_CURE,
        env_defaults={
            "budget": 4,
            "grid_scales": [0.34, 0.24],
            "observations": ["canvas", "uncertainty", "acuity", "viewpoint", "time", "goal"],
        },
        skill=Skill(
            name="search for a goal",
            opponents=(
                "goal_probability(scale=(0.34, 0.24))",
                "goal_entropy(scale=(0.34, 0.24))",
                "item_probability(scale=(0.34, 0.24))",
                "saliency(scale=0.4)",
                "coarse_to_fine",
            ),
            ceiling="goal_locator(factor=1.0, jitter=0.2)",
        ),
        page=DatasetPage(
            headline="A garment is named: find it among others and outline it.",
            scenes="""
                A scene of 128 x 128 px holds seven to nine (rarely fewer) Fashion-MNIST items of 20 to 28 px, all of
                different classes, none overlapping, over fragments of other items. One of the classes in the scene is
                the goal: it is drawn with the scene, from the same seed, or given by options={"goal": ...}, a class
                index, which a scene without that class refuses. At the first glimpse an item is 5 to 7 px wide: there
                are many places where the goal may be, and glimpses for three of them.
                """,
            classes="eleven classes (background and ten garments)",
            example={"num_scenes": 16},
            arguments=_FASHION_COUNT,
        ),
    ),
    DatasetSpec(
        name="fashion-crowd",
        env_id="CanViT/FashionCrowd-v0",
        task="segmentation",
        splits=_FASHION_SPLITS,
        make_scenes=_fashion("crowd"),
        default_probe=_nano_probe("nano-segmentation-probe"),
        probe_cure=_NANO_CURE,
        env_defaults={"budget": 13, "grid_scales": [0.34, 0.17]},
        skill=Skill(
            name="long horizon",
            opponents=(
                "item_probability(scale=(0.34, 0.24))",
                "entropy_greedy(scale=0.18)",
                "saliency(scale=0.3)",
                "coarse_to_fine",
            ),
            ceiling="box_locator(factor=1.0, jitter=0.2)",
        ),
        page=DatasetPage(
            headline="Read many small garments in dense clutter, one after the other, over a long episode.",
            scenes="""
                A scene of 128 x 128 px holds eight to ten (rarely seven) Fashion-MNIST items of 16 to 22 px, none
                overlapping, over 20 to 30 fragments of other items. At the first glimpse an item is 4 to 6 px wide and
                looks like the fragments around it; twelve more glimpses are one or two for each item, if none is
                wasted.
                """,
            classes="eleven classes (background and ten garments)",
            example={"num_scenes": 16},
            arguments=_FASHION_COUNT,
        ),
    ),
    DatasetSpec(
        name="fashion-distractors",
        env_id="CanViT/FashionDistractors-v0",
        task="segmentation",
        splits=_FASHION_SPLITS,
        make_scenes=_fashion("distractors"),
        default_probe=_nano_probe("nano-segmentation-probe"),
        probe_cure=_NANO_CURE,
        env_defaults={"grid_scales": [0.34, 0.24]},
        skill=Skill(
            name="ignoring what stays uncertain",
            opponents=(
                "entropy_greedy(scale=0.4)",
                "item_probability(scale=0.4)",
                "saliency(scale=0.5)",
                "coarse_to_fine",
            ),
            ceiling="box_locator(factor=1.0, jitter=0.2)",
        ),
        page=DatasetPage(
            headline="Read the few whole garments, and leave the look-alikes alone that no glimpse resolves.",
            scenes="""
                A scene of 128 x 128 px holds one or two Fashion-MNIST items of 22 to 32 px among six to nine
                look-alikes of the same sizes, each put together from quarters of four items of different classes. A
                look-alike is background, but every quarter of it speaks for another class, however closely one looks:
                its reading stays uncertain, and whoever looks where the reading is uncertain looks there.
                """,
            classes="eleven classes (background and ten garments)",
            example={"num_scenes": 16},
            arguments=_FASHION_COUNT,
        ),
    ),
    DatasetSpec(
        name="fashion-odd",
        env_id="CanViT/FashionOdd-v0",
        task="classification",
        splits=_FASHION_SPLITS,
        make_scenes=_fashion("twice"),
        default_probe=_nano_probe("nano-odd-probe"),
        probe_cure=_NANO_CURE,
        env_defaults={"grid_scales": [0.34, 0.24]},
        skill=Skill(
            name="comparing across glimpses",
            opponents=(
                "item_probability(scale=0.3)",
                "fine_to_coarse",
                "saliency(scale=(0.4, 0.3))",
                "coarse_to_fine",
            ),
            ceiling="box_locator(factor=1.5, jitter=0.2)",
        ),
        page=DatasetPage(
            headline="Find the class that is there twice: no single glimpse tells.",
            scenes="""
                A scene of 128 x 128 px holds four (rarely three) Fashion-MNIST items of 26 to 32 px, two of them of one
                class and the others of two more, among three or four look-alikes of the same sizes, put together from
                quarters of four items of different classes. The class that is there twice is the label. Each item has
                to be found and compared with what was seen before it, and there is a glimpse for each item, if no
                look-alike takes one; the shipped probe reads the recurrent CLS token, which holds what was seen.
                """,
            classes="one of ten classes",
            example={"num_scenes": 16},
            arguments=_FASHION_COUNT,
        ),
    ),
    DatasetSpec(
        name="fashion-order",
        env_id="CanViT/FashionOrder-v0",
        task="segmentation",
        splits=_FASHION_SPLITS,
        make_scenes=_fashion("distractors"),
        default_probe=_nano_probe("nano-segmentation-probe"),
        probe_cure=_NANO_CURE,
        env_defaults={"grid_scales": [0.25], "grid_centers": 4, "revisit": False, "reward": "score_area"},
        skill=Skill(
            name="order alone",
            opponents=("item_probability", "entropy_greedy", "raster_order", "center_out", "dependency_rank"),
            ceiling="window_locator(scale=0.25, centers=4)",
            baseline="random_order",
        ),
        page=DatasetPage(
            headline="Sixteen tiles, each at most once: only the order of looking counts.",
            scenes="""
                The scenes are those of FashionDistractors: one or two Fashion-MNIST items of 22 to 32 px among six to
                nine look-alikes, which are background. The viewpoints are the 4 x 4 tiles of the scene, at full
                resolution and each allowed once; what pays is the area under the curve of the score, so that what
                tells most has to be seen first. A budget of more than the first glimpse and sixteen tiles is refused.
                """,
            classes="eleven classes (background and ten garments)",
            example={"num_scenes": 16},
            arguments=_FASHION_COUNT,
        ),
    ),
    DatasetSpec(
        name="fashion-stop",
        env_id="CanViT/FashionStop-v0",
        task="classification",
        splits=_FASHION_SPLITS,
        make_scenes=_fashion("classification"),
        default_probe=_nano_probe("nano-classification-probe"),
        probe_cure=_NANO_CURE,
        env_defaults={"budget": 9, "allow_stop": True, "glimpse_cost": 0.02, "reward": "soft_score_gain"},
        skill=Skill(
            name="when to stop",
            opponents=("item_probability(scale=(0.34, 0.24))", "saliency(scale=0.4)", "coarse_to_fine"),
            ceiling="item_probability(scale=(0.34, 0.24))",
            stop_confidence=0.6,
            ceiling_stops_when_right=True,
        ),
        page=DatasetPage(
            headline="Every glimpse has its price: name the garment, and stop in time.",
            scenes="""
                The scenes are those of FashionClassification: one whole Fashion-MNIST item of 26 to 44 px among eight
                to twelve fragments of others. A glimpse costs two points of accuracy; an episode ends when the agent
                stops it, after nine glimpses at the latest. Some scenes are read after one glimpse, some never are.
                """,
            classes="one of ten classes",
            example={"num_scenes": 16},
            arguments=_FASHION_COUNT,
        ),
    ),
    DatasetSpec(
        name="ade20k",
        env_id="CanViT/ADE20K-v0",
        task="segmentation",
        splits=_BENCHMARK_SPLITS,
        make_scenes="canvit_gym.scenes.on_disk:ade20k_scenes",
        default_probe=_ade20k_probe,
        env_defaults={"checkpoint": "flagship"},
        on_disk=OnDisk(layout=ADE20K_LAYOUT, variable="ADE20K_ROOT"),
        page=DatasetPage(
            headline="Name every pixel of a photograph: ADE20K's 150 classes, read by the released CanViT-B.",
            scenes="""
                A scene is an image of ADEChallengeData2016 squeezed to the checkpoint's scene size, 512 x 512 px,
                without cropping, as the CanViT paper evaluates. Unlabeled pixels count neither in the loss nor in the
                score. Images are read and resized by canvit-pytorch's own transforms, to the same pixels. An image that
                fits its annotation turned as its EXIF orientation says, and unturned as well, is refused.
                """,
            classes="150 classes",
            geometry=CANVIT_B_GEOMETRY,
            example={"split": "validation"},
            arguments={"root": "the ADEChallengeData2016 directory, with images/ and annotations/; None: $ADE20K_ROOT"},
        ),
    ),
    DatasetSpec(
        name="imagenet1k",
        env_id="CanViT/ImageNet1k-v0",
        task="classification",
        splits=_BENCHMARK_SPLITS,
        make_scenes="canvit_gym.scenes.on_disk:imagenet_scenes",
        default_probe=lambda backbone: None if backbone.name == "nano" else "dinov3-vitb16-in1k",
        probe_cure=" or use checkpoint='flagship' or 'finetuned-in1k'",
        env_defaults={"checkpoint": "flagship"},
        on_disk=OnDisk(layout=IMAGENET_LAYOUT, variable="IMAGENET_ROOT"),
        page=DatasetPage(
            headline="Name what a photograph shows: one of ImageNet-1k's classes, read by the released CanViT-B.",
            scenes="""
                A scene is an image of ImageNet-1k, its short side resized to the checkpoint's scene size, 512 px, and
                center-cropped, as the CanViT paper evaluates. Classes are in the order of the sorted WordNet ids.
                Images are read and resized by canvit-pytorch's own transforms, to the same pixels. By default the
                pretrained CanViT-B stays frozen and its teacher's released probe reads it;
                checkpoint="finetuned-in1k" is the one fine-tuned on ImageNet-1k, which needs no probe.
                """,
            classes="one of 1,000 classes",
            geometry=CANVIT_B_GEOMETRY,
            example={"split": "validation", "num_scenes": 8},
            arguments={
                "root": "the directory with train/ and val/, each with a folder per class; None: $IMAGENET_ROOT"
            },
        ),
    ),
    DatasetSpec(
        name="image-folder",
        env_id="CanViT/ImageFolder-v0",
        task="classification",
        splits=_FOLDER_SPLITS,
        make_scenes="canvit_gym.scenes.on_disk:image_folder_scenes",
        on_disk=OnDisk(layout=IMAGE_FOLDER_LAYOUT),
        page=DatasetPage(
            headline="Name what an image of your own shows.",
            scenes=f"""
                The data set is a folder of images with a folder per class:

                    pets/train/cat/1.jpg   pets/val/cat/7.jpg   pets/test/cat/9.jpg     or     pets/cat/1.jpg
                    pets/train/dog/2.jpg   pets/val/dog/8.jpg   pets/test/dog/10.jpg           pets/dog/2.jpg

                Folders train/, val/ (also valid/, validation/) and test/ are the splits. Without them an image's split
                is that of a hash of its path below the root: 80 % training, 10 % validation, 10 % test, the same on
                every machine, whatever other images there are. Images are resized on the short side and center-cropped
                to the checkpoint's scene size; grey, palette, CMYK and transparent ones become RGB, and an EXIF
                orientation is not applied, as in canvit-pytorch and torchvision.

                The checkpoint needs a probe: {_OWN_PROBE}.
                """,
            classes="the class",
            example={"root": "pets", "probe": "pets_probe"},
            arguments={"root": "the folder; it has to be given"},
        ),
    ),
    DatasetSpec(
        name="segmentation-folder",
        env_id="CanViT/SegmentationFolder-v0",
        task="segmentation",
        splits=_FOLDER_SPLITS,
        make_scenes="canvit_gym.scenes.on_disk:segmentation_folder_scenes",
        on_disk=OnDisk(layout=SEGMENTATION_LAYOUT, takes_mask_values=True),
        page=DatasetPage(
            headline="Name every pixel of images of your own.",
            scenes=f"""
                The data set is a folder of images with a mask for each, and a list of the classes:

                    land/images/train/1.jpg   land/images/val/7.jpg   land/images/test/9.jpg   land/classes.txt
                    land/masks/train/1.png    land/masks/val/7.png    land/masks/test/9.png

                Masks are PNGs of one class index a pixel, as large as their image; 255 is ignored. Where they hold
                other values, or colours, `mask_values` says what they mean. classes.txt names a class per line, in the
                order of the indices; classes.json, a list of names, does as well. Some masks are looked at when an
                environment is made, and what does not fit the list is told. Without
                train/, val/ and test/ an image's split is that of a hash of its path: 80 % training, 10 % validation,
                10 % test. Image and mask are squeezed to the checkpoint's scene size, as in the protocol of ADE20K; the
                mask by its nearest pixels. Images of any mode are read, but for grey ones of 16 or 32 bits, which are
                refused. An EXIF orientation is applied where only the turned image fits the mask; where both fit, the
                scene is refused.

                The checkpoint needs a probe: {_OWN_PROBE}.
                """,
            classes="the classes of your list",
            example={"root": "land", "probe": "land_probe"},
            arguments={"root": "the folder; it has to be given"},
        ),
    ),
    DatasetSpec(
        name="unlabelled-folder",
        env_id="CanViT/ReconstructionFolder-v0",
        task="reconstruction",
        splits=_FOLDER_SPLITS,
        make_scenes="canvit_gym.scenes.on_disk:unlabelled_folder_scenes",
        env_defaults={"checkpoint": "flagship", "observations": _NO_UNCERTAINTY, "reward": "score_gain"},
        on_disk=OnDisk(layout=UNLABELLED_LAYOUT),
        page=DatasetPage(
            headline="Predict what the teacher sees in images of your own, without any label.",
            scenes=f"""
                The data set is a folder of images, in whatever folders below it; their names say nothing. Folders
                train/, val/ (also valid/, validation/) and test/ are the splits. Without them an image's split is that
                of a hash of its path below the root: 80 % training, 10 % validation, 10 % test. Images are resized on
                the short side and center-cropped to the checkpoint's scene size, as canvit-pytorch does for its
                reconstruction.

                {_TEACHER}
                """,
            classes="the teacher's features",
            geometry=CANVIT_B_GEOMETRY,
            example={"root": "photos", "checkpoint": "nano"},
            arguments={"root": "the folder; it has to be given", "probe": _TEACHER_PROBE},
        ),
    ),
)

DATASETS: dict[str, DatasetSpec] = {spec.name: spec for spec in _BUILT_IN}
"""Name -> spec, built in and registered."""


def check_spec(spec: DatasetSpec, *, tasks: Iterable[str]) -> None:
    """
    Raises:
        ValueError: a name or an id that is taken or malformed, or a task that does not exist.
    """
    if not spec.name or spec.name in DATASETS:
        raise ValueError(
            f"the data set name {spec.name!r} is empty or taken; choose another than {', '.join(DATASETS)}"
        )
    if not re.fullmatch(r"([\w:-]+/)?[A-Za-z]\w*-v\d+", spec.env_id):
        raise ValueError(f"env_id {spec.env_id!r} is not of the form 'namespace/Name-v0'")
    if taken := [other.name for other in DATASETS.values() if other.class_name == spec.class_name]:
        raise ValueError(f"the id {spec.env_id!r} is taken by the data set {taken[0]!r}; choose another name")
    if spec.task not in tasks:
        raise ValueError(f"unknown task {spec.task!r} of data set {spec.name!r}; choose one of {', '.join(tasks)}")
    if "training" not in spec.splits:
        raise ValueError(f"splits of data set {spec.name!r} must hold 'training', got {spec.splits!r}")


def check_scene_arguments(
    *,
    dataset: str,
    split: str,
    root: str | None,
    tuning_scenes: int,
    cache: bool | str,
    mask_values: Mapping[str, str | None] | None = None,
) -> None:
    """
    Raises:
        ValueError: arguments that contradict each other.
    """
    spec = DATASETS[dataset]
    if split not in spec.splits:
        raise ValueError(f"unknown split {split!r} of {dataset}; choose one of {', '.join(spec.splits)}")
    if spec.on_disk is None:
        for name, given in (("root", root is not None), ("tuning_scenes", tuning_scenes > 0), ("cache", bool(cache))):
            if given:
                on_disk = ", ".join(other.name for other in DATASETS.values() if other.on_disk is not None)
                raise ValueError(f"{name} is for data sets on disk ({on_disk}), not for {dataset}: leave it out")
    if mask_values is not None and not (spec.on_disk and spec.on_disk.takes_mask_values):
        taken = ", ".join(
            other.name for other in DATASETS.values() if other.on_disk and other.on_disk.takes_mask_values
        )
        raise ValueError(f"mask_values is for masks of your own ({taken}), not for {dataset}: leave it out")
    if split == "tuning" and tuning_scenes < 1:
        raise ValueError("split 'tuning' is held out of the training scenes: say how many with tuning_scenes=N")
