"""Data sets by name. A DatasetSpec defines a data set's task, how its scenes are made, and its documentation.

Gymnasium ids, environment classes, choices of `dataset=`, default probes and documentation pages are derived from the
specs. `canvit_gym.register_dataset` adds your own. This module imports neither torch nor an image library, so that
`import canvit_gym` stays cheap: functions that make scenes may be named by a string, like Gymnasium's entry points.
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
    """What an environment requests from a data set."""

    split: str
    num_scenes: int | None
    """The largest number of scenes; None: the whole split, or the data set's default."""
    scene_size_px: Callable[[], int]
    """Returns the size that the checkpoint expects. It loads the checkpoint, so call it only if the data set has no
    fixed size."""
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
    """Sizes for a documentation page: those of the id's default checkpoint."""

    scene_px: int
    glimpse_px: int
    grid: int
    canvas_dim: int
    cls_dim: int


NANO_GEOMETRY = Geometry(scene_px=128, glimpse_px=32, grid=16, canvas_dim=128, cls_dim=128)
CANVIT_B_GEOMETRY = Geometry(scene_px=512, glimpse_px=128, grid=32, canvas_dim=1024, cls_dim=768)


@dataclass(frozen=True, kw_only=True)
class DatasetPage:
    """The parts of an environment's documentation page that differ between data sets."""

    headline: str
    scenes: str
    classes: str = "the classes"
    geometry: Geometry = NANO_GEOMETRY
    example: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the examples."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Keyword -> its meaning here, where EnvConfig's general description is not enough."""
    history: str = ""
    """What has changed in the environment since its first release."""


@dataclass(frozen=True, kw_only=True)
class OnDisk:
    """How a data set is laid out on disk, and where it is found."""

    layout: str
    """The contents of its directory, in words."""
    variable: str | None = None
    """Environment variable with the directory, used if `root` is not passed."""
    takes_mask_values: bool = False
    """Whether `mask_values` may define the values of its masks."""


@dataclass(frozen=True, kw_only=True)
class Skill:
    """What an environment of the suite isolates, and whom a policy is compared with there: see canvit_gym.suite.

    Policies are named as `make_policy` takes them. Their scales are those that did best on training scenes
    (experiments/studies/suite_headroom.py), of every kind of policy.
    """

    name: str
    """In a few words: "coverage"."""
    opponents: tuple[str, ...]
    """Hand-coded policies that use no labels, the best one first."""
    ceiling: str
    """The policy that is told where to look, or when to stop."""
    baseline: str = "random"
    """The policy without any skill."""
    early_counts: bool = False
    """Whether it pays to know more after each glimpse, not only after the last one: see canvit_gym.suite.payoff."""
    stop_confidence: float | None = None
    """Where episodes can be stopped: opponents stop as soon as a reading is as confident as this."""
    ceiling_stops_when_right: bool = False
    """Whether the ceiling is told when the reading is right; else it stops as opponents do."""
    locator: str | None = None
    """Where the ceiling is told when to stop: the best policy that is told where to look, and stops as opponents do."""


@dataclass(frozen=True, kw_only=True)
class ProbeFit:
    """What canvit_gym.probes.fit may assume of a data set; of most, nothing."""

    items_on_background: bool = False
    """Class 0 is a background that covers most of a scene: the other classes count more (item_weight, item_bonus)."""
    classes_in_teacher: bool = False
    """Features 1 to K of the teacher's CLS token are the log-odds of the K classes, as nano's teacher has them: the fit
    begins there."""


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A data set and its environment id."""

    name: str
    """The value of `dataset=`."""
    env_id: str
    """The Gymnasium id: "namespace/Name-v0"."""
    task: str
    """Name of an entry of canvit_gym.tasks.TASKS."""
    splits: tuple[str, ...]
    make_scenes: MakeScenes | str
    """The function that makes the scenes of a split, or its "module:function"."""
    page: DatasetPage
    default_probe: Callable[["Backbone"], str | None] = lambda backbone: None
    """Backbone -> the probe to use if `probe=` is not passed, or None if there is none."""
    probe_cure: str = ""
    """End of the error message when there is no default probe: " or use checkpoint='nano'"."""
    probe_fit: ProbeFit = ProbeFit()
    env_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the id that differ from EnvConfig's defaults. JSON-able."""
    on_disk: OnDisk | None = None
    """None: scenes are generated."""
    skill: Skill | None = None
    """What the suite measures with it; None: it is not part of the suite."""

    @property
    def class_name(self) -> str:
        """Name of the environment class: FashionSegmentationEnv."""
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


def without_namespace(env_id: str) -> str:
    """The id without Gymnasium's namespace: "FashionSegmentation-v0" of "CanViT/FashionSegmentation-v0"."""
    return env_id.rpartition("/")[2]


def env_name(env_id: str) -> str:
    """The name in an id: "FashionSegmentation" of "CanViT/FashionSegmentation-v0"."""
    return without_namespace(env_id).partition("-")[0]


ADE20K_LAYOUT = (
    "images/training, images/validation (JPEG), annotations/training and annotations/validation (PNG), as "
    "ADEChallengeData2016 has them"
)
IMAGENET_LAYOUT = "train/ and val/, each with the 1,000 class folders (n01440764, ...)"
UNLABELLED_LAYOUT = "images, in any folders, or train/ and val/ (and test/) with images in each"
IMAGE_FOLDER_LAYOUT = "a folder of images per class, or train/ and val/ (and test/) with these folders in each"
SEGMENTATION_LAYOUT = (
    "images/ and masks/ with a mask PNG of the same name for every image (images/1.jpg and masks/1.png, or with splits "
    "images/train/1.jpg and masks/train/1.png), and classes.txt with a class name per line, or classes.json with a "
    "list of names"
)

_FASHION_SPLITS = ("training", "validation", "test")
_BENCHMARK_SPLITS = ("training", "validation", "tuning")
_FOLDER_SPLITS = ("training", "validation", "test", "tuning")
_OWN_PROBE = "`canvit-gym fit-probe` fits one on your own classes"


_NEW_TRAINING_SCENES = "Since 0.2 its training scenes begin after those that nano was trained on."
_KNOWN_TO_NANO = 24_576
"""Number of training scenes, of the flavours segmentation and classification, that nano may have learned from.

It knows some by heart: of those of classification it names the item in about 65 % after the first glimpse, and in 48 %
of any others. What an agent learns there, of when to stop above all, would not hold elsewhere. So environments leave
them out.
"""


def _fashion(flavour: str, *, first_of_training: int = 0) -> MakeScenes:
    def make(request: SceneRequest) -> "SceneSource":
        from canvit_gym.scenes.prepared import fashion_scenes

        return fashion_scenes(request, flavour=flavour, first_of_training=first_of_training)

    return make


def _nano_probe(name: str) -> Callable[["Backbone"], str | None]:
    """The shipped probe of this name, for the shipped checkpoint on its own canvas."""
    return lambda backbone: name if (backbone.name, backbone.canvas_grid) == ("nano", NANO_GEOMETRY.grid) else None


def _ade20k_probe(backbone: "Backbone") -> str:
    from canvit_gym.backbone.hub import ade20k_probe

    return ade20k_probe(backbone.source, scene_size_px=backbone.scene_size_px, canvas_grid=backbone.canvas_grid)


_NANO_CURE = f" or use checkpoint='nano' with canvas_grid={NANO_GEOMETRY.grid}"
_FASHION_COUNT = {"num_scenes": "number of scenes; None: 8192, 512 or 1000, depending on the split"}

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
        make_scenes=_fashion("segmentation", first_of_training=_KNOWN_TO_NANO),
        default_probe=_nano_probe("nano-segmentation-probe"),
        probe_cure=_NANO_CURE,
        probe_fit=ProbeFit(items_on_background=True),
        skill=Skill(
            name="coverage",
            opponents=(
                "item_probability(scale=(0.4, 0.3))",
                "entropy_greedy(scale=(0.4, 0.3))",
                "saliency(scale=0.4)",
                "coarse_to_fine",
            ),
            ceiling="box_locator(factor=1.0, jitter=0.2)",
        ),
        page=DatasetPage(
            headline="Segment the garments in a scene.",
            scenes="""
                A scene of 128 x 128 px contains three to five (rarely two) tinted Fashion-MNIST items of 26 to 44 px
                that do not overlap, over textured clutter with fragments of other items. In the first glimpse, of the
                full scene, an item is 6 to 11 px wide: one can see where it is, but hardly what it is.
                """,
            classes="eleven classes (background and ten garments)",
            example={"num_scenes": 16},
            arguments=_FASHION_COUNT,
            history=_NEW_TRAINING_SCENES,
        ),
    ),
    DatasetSpec(
        name="fashion-classification",
        env_id="CanViT/FashionClassification-v0",
        task="classification",
        splits=_FASHION_SPLITS,
        make_scenes=_fashion("classification", first_of_training=_KNOWN_TO_NANO),
        default_probe=_nano_probe("nano-classification-probe"),
        probe_cure=_NANO_CURE,
        probe_fit=ProbeFit(classes_in_teacher=True),
        skill=Skill(
            name="fine detail",
            opponents=("item_probability(scale=(0.34, 0.24))", "saliency(scale=0.3)", "coarse_to_fine"),
            ceiling="box_locator(factor=1.0, jitter=0.2)",
        ),
        page=DatasetPage(
            headline="Find the only whole garment in a scene and classify it.",
            scenes="""
                A scene of 128 x 128 px contains one whole Fashion-MNIST item of 26 to 44 px among eight to twelve
                fragments of others, over textured clutter. Its class, one of ten, is the label.
                """,
            classes="one of ten classes",
            example={"num_scenes": 16},
            arguments=_FASHION_COUNT,
            history=_NEW_TRAINING_SCENES,
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
                "goal_probability(scale=(0.4, 0.17))",
                "goal_entropy(scale=(0.4, 0.17))",
                "item_probability(scale=(0.34, 0.24))",
                "saliency(scale=0.4)",
                "coarse_to_fine",
            ),
            ceiling="goal_locator(factor=1.0, jitter=0.2)",
        ),
        page=DatasetPage(
            headline="Find the garment that the goal names among others, and segment it.",
            scenes="""
                A scene of 128 x 128 px contains seven to nine (rarely fewer) Fashion-MNIST items of 20 to 28 px, all of
                different classes, that do not overlap, over fragments of other items. The goal is one of the classes in
                the scene. It is drawn together with the scene, or chosen with options={"goal": class index}, which
                raises an error if the class does not occur in the scene. In the first glimpse an item is 5 to 7 px
                wide: the goal may be in many places, and the budget is enough for three of them.
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
                "item_probability(scale=(0.34, 0.14))",
                "entropy_greedy(scale=(0.34, 0.14))",
                "saliency(scale=0.3)",
                "coarse_to_fine",
            ),
            ceiling="box_locator(factor=0.8, jitter=0.2)",
        ),
        page=DatasetPage(
            headline="Segment many small garments in dense clutter, in a long episode.",
            scenes="""
                A scene of 128 x 128 px contains eight to ten (rarely seven) Fashion-MNIST items of 16 to 22 px that do
                not overlap, over 20 to 30 fragments of other items. In the first glimpse an item is 4 to 6 px wide and
                looks like the fragments around it. Twelve more glimpses allow one or two per item, if none is wasted.
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
                "item_probability(scale=(0.5, 0.3))",
                "entropy_greedy(scale=0.4)",
                "saliency(scale=0.5)",
                "coarse_to_fine",
            ),
            ceiling="box_locator(factor=1.25, jitter=0.2)",
        ),
        page=DatasetPage(
            headline="Segment the few whole garments, and ignore look-alikes that stay uncertain in every glimpse.",
            scenes="""
                A scene of 128 x 128 px contains one or two Fashion-MNIST items of 22 to 32 px among six to nine
                look-alikes of the same sizes. A look-alike is made of quarters of four items of different classes and
                counts as background. Its quarters suggest different classes however closely one looks, so that its
                reading stays uncertain and attracts policies that look where readings are uncertain.
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
                "item_probability(scale=0.34)",
                "fine_to_coarse",
                "saliency(scale=0.5)",
                "coarse_to_fine",
            ),
            ceiling="box_locator(factor=1.0, jitter=0.2)",
        ),
        page=DatasetPage(
            headline="Find the class that occurs twice, which no single glimpse can tell.",
            scenes="""
                A scene of 128 x 128 px contains four (rarely three) Fashion-MNIST items of 26 to 32 px among three or
                four look-alikes of the same sizes, which are made of quarters of four items of different classes. Two
                of the items share a class, which is the label; the others are of two other classes. The agent has to
                find every item and compare it with those before, and has one glimpse per item if none is wasted on a
                look-alike. The shipped probe reads the recurrent CLS token, which remembers what was seen.
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
            ceiling="window_locator",
            baseline="random_order",
            early_counts=True,
        ),
        page=DatasetPage(
            headline="Look at sixteen tiles, each at most once: only their order counts.",
            scenes="""
                The scenes are those of FashionDistractors: one or two Fashion-MNIST items of 22 to 32 px among six to
                nine look-alikes, which are background. The viewpoints are the 4 x 4 tiles of the scene at full
                resolution, each allowed once. The return is the area under the curve of the score, so that the most
                informative tiles should come first. The budget is at most 17: the first glimpse and sixteen tiles.
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
        make_scenes=_fashion("classification", first_of_training=_KNOWN_TO_NANO),
        default_probe=_nano_probe("nano-classification-probe"),
        probe_cure=_NANO_CURE,
        env_defaults={"budget": 9, "allow_stop": True, "glimpse_cost": 0.02, "reward": "soft_score_gain"},
        skill=Skill(
            name="when to stop",
            opponents=("item_probability(scale=(0.4, 0.24))", "saliency(scale=0.4)", "coarse_to_fine"),
            ceiling="item_probability(scale=(0.4, 0.24))",
            stop_confidence=0.8,
            ceiling_stops_when_right=True,
            locator="box_locator(factor=1.0, jitter=0.2)",
        ),
        page=DatasetPage(
            headline="Classify the garment at a price per glimpse, and stop in time.",
            scenes="""
                The scenes are those of FashionClassification: one whole Fashion-MNIST item of 26 to 44 px among eight
                to twelve fragments of others. A glimpse costs as much as two points of accuracy. An episode ends when
                the agent stops, after nine glimpses at the latest. Some scenes are read correctly after one glimpse,
                some never.
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
            headline="Segment photographs into ADE20K's 150 classes with the released CanViT-B.",
            scenes="""
                A scene is an image of ADEChallengeData2016 squeezed to the checkpoint's scene size, 512 x 512 px,
                without cropping, as in the CanViT paper. Unlabeled pixels count neither in the loss nor in the score.
                Images are read and resized by canvit-pytorch's own transforms, to the same pixels. If an image has an
                EXIF orientation and fits its annotation both with and without it, an error is raised.
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
            headline="Classify photographs into ImageNet-1k's classes with the released CanViT-B.",
            scenes="""
                A scene is an image of ImageNet-1k, its short side resized to the checkpoint's scene size, 512 px, and
                center-cropped, as in the CanViT paper. Classes are in the order of the sorted WordNet ids. Images are
                read and resized by canvit-pytorch's own transforms, to the same pixels. By default the teacher's
                released probe reads the pretrained, frozen CanViT-B. checkpoint="finetuned-in1k" is fine-tuned on
                ImageNet-1k and needs no probe.
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
            headline="Classify your own images.",
            scenes=f"""
                The data set is a folder with a subfolder of images per class:

                    pets/train/cat/1.jpg   pets/val/cat/7.jpg   pets/test/cat/9.jpg     or     pets/cat/1.jpg
                    pets/train/dog/2.jpg   pets/val/dog/8.jpg   pets/test/dog/10.jpg           pets/dog/2.jpg

                The folders train/, val/ (or valid/, validation/) and test/ are the splits. Without them a hash of an
                image's path below the root decides its split (80 % training, 10 % validation, 10 % test), which is the
                same on every machine and does not depend on the other images. The short side of an image is resized to
                the checkpoint's scene size and the image is center-cropped. Grey, palette, CMYK and transparent images
                are converted to RGB. EXIF orientations are not applied, as in canvit-pytorch and torchvision.

                The checkpoint needs a probe: {_OWN_PROBE}.
                """,
            classes="the class",
            example={"root": "pets", "probe": "pets_probe"},
            arguments={"root": "the folder (required)"},
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
            headline="Segment your own images.",
            scenes=f"""
                The data set is a folder of images, a mask for each of them, and a list of classes:

                    land/images/train/1.jpg   land/images/val/7.jpg   land/images/test/9.jpg   land/classes.txt
                    land/masks/train/1.png    land/masks/val/7.png    land/masks/test/9.png

                Masks are PNGs of the size of their image with a class index per pixel; 255 is ignored. For masks with
                other values, or colours, `mask_values` defines what they mean. classes.txt has a class name per line,
                in the order of the indices; classes.json has a list of names. Some masks are checked when an
                environment is made, and an error is raised if their values do not fit the list. Without train/, val/
                and test/ a hash of an image's path decides its split: 80 % training, 10 % validation, 10 % test. Images
                and masks are squeezed to the checkpoint's scene size, as for ADE20K, masks by nearest neighbour. Images
                may have any mode except 16 or 32 bit grey, which raises an error. An EXIF orientation is applied if
                only the rotated image fits the mask; if both fit, an error is raised.

                The checkpoint needs a probe: {_OWN_PROBE}.
                """,
            classes="your classes",
            example={"root": "land", "probe": "land_probe"},
            arguments={"root": "the folder (required)"},
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
"""Name -> spec of built-in and registered data sets."""


def suite_ids() -> dict[str, Skill]:
    """The ids of the suite and what each isolates, in the order of the data sets."""
    return {spec.env_id: spec.skill for spec in DATASETS.values() if spec.skill is not None}


def check_spec(spec: DatasetSpec, *, tasks: Iterable[str]) -> None:
    """
    Raises:
        ValueError: a name or an id that is taken or malformed, or an unknown task.
    """
    if not spec.name or spec.name in DATASETS:
        raise ValueError(
            f"the data set name {spec.name!r} is empty or taken; choose one other than {', '.join(DATASETS)}"
        )
    if not re.fullmatch(r"([\w:-]+/)?[A-Za-z]\w*-v\d+", spec.env_id):
        raise ValueError(f"env_id {spec.env_id!r} is not of the form 'namespace/Name-v0'")
    if taken := [other.name for other in DATASETS.values() if other.class_name == spec.class_name]:
        raise ValueError(f"the id {spec.env_id!r} is taken by the data set {taken[0]!r}; choose another name")
    if spec.task not in tasks:
        raise ValueError(f"unknown task {spec.task!r} of data set {spec.name!r}; choose one of {', '.join(tasks)}")
    if "training" not in spec.splits:
        raise ValueError(f"splits of data set {spec.name!r} must include 'training', got {spec.splits!r}")


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
        raise ValueError(f"mask_values is for your own masks ({taken}), not for {dataset}: leave it out")
    if split == "tuning" and tuning_scenes < 1:
        raise ValueError(
            "split 'tuning' consists of held-out training scenes: pass their number as tuning_scenes=N (to a command: "
            "--env-kwargs '{\"tuning_scenes\": N}')"
        )
