"""The `data` section: images, how they are augmented, which of them steer the search, which keep their labels."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from kdtune.experiment.section import Section, Seed

DatasetName = Literal["digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "folder", "imagenet"]
Augment = Literal["none", "crop", "flip", "crop-flip", "random-resized-crop", "random-resized-crop-flip"]

DOWNLOADABLE = ("mnist", "fashion-mnist", "cifar10", "cifar100")
OF_FILES = ("imagenet", "folder")
IMAGENET_SIZE = 224


class Data(Section):
    """Images, how they are augmented, which of the training images steer the search, and which keep their labels."""

    dataset: DatasetName = Field(description="digits ships with scikit-learn; folder reads class folders.")
    root: str | None = Field(None, description="Folder of the data set; digits has none.")
    download: bool = Field(False, description="Fetch the data set into `root` where it is not there yet.")
    image_size: int | None = Field(
        None, ge=4, le=1024, description="Folder data sets: side of the square that a network sees; imagenet: 224."
    )
    augment: Augment = Field("none", description="What each view of a training image may change.")
    crop_padding: int = Field(4, ge=1, le=64, description="Crop: pixels that a crop may move the image by.")
    crop_scale: tuple[float, float] = Field(
        (0.08, 1.0), description="Random resized crop: smallest and largest share of the image's area."
    )
    mean: tuple[float, ...] | None = Field(
        None, description="Per-channel mean in 0..1; null takes the data set's published one, or measures it."
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="Per-channel standard deviation in 0..1; null as for the mean."
    )
    validation: float = Field(
        0.1, gt=0, le=0.5, description="Share of the training images, stratified, that steers the search."
    )
    split_seed: Seed = Field(0, description="Chooses the validation images, and those that keep their labels.")
    labels_kept: float = Field(
        1.0, gt=0, le=1, description="Share of the training images, stratified, whose labels students may use."
    )
    unlabelled: Literal["distil", "ignore"] = Field(
        "distil", description="Images without a label: learn from the teacher's answer to them, or leave them out."
    )
    views: Literal["auto"] | PositiveInt = Field(
        "auto",
        description="Augmented views of each image; auto is one an epoch, fewer where the disk cannot hold their "
        "logits, or 1 without augmentation.",
    )
    view_seed: Seed = Field(0, description="Chooses the augmentation of every view.")
    decode_workers: Literal["auto"] | PositiveInt = Field(
        "auto", description="Processes that decode images too large to be kept in memory; auto is one a core."
    )

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if self.dataset == "folder" and (self.root is None or self.image_size is None):
            raise ValueError("a folder data set needs `root` (it holds train/ and test/) and `image_size`")
        if self.dataset == "digits" and self.root is not None:
            raise ValueError("digits comes with scikit-learn and has no `root`")
        if self.dataset not in OF_FILES and self.image_size is not None:
            raise ValueError(f"`image_size` is for folder data sets; the images of {self.dataset} have theirs")
        if self.dataset != "digits" and self.root is None:
            raise ValueError(f"{self.dataset} needs `root`, the folder that holds its files")
        if self.download and self.dataset not in DOWNLOADABLE:
            raise ValueError(f"{self.dataset} cannot be downloaded; `download` is for {', '.join(DOWNLOADABLE)}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both `mean` and `std`, or neither")
        return self

    @model_validator(mode="after")
    def _augmentation_fits(self) -> Self:
        if self.augment == "none" and self.views not in ("auto", 1):
            raise ValueError(f"without augmentation all views are the same; views is {self.views}, leave it auto")
        if self.resized and self.dataset not in OF_FILES:
            raise ValueError(
                f"{self.augment} is for data sets of large images ({', '.join(OF_FILES)}); "
                f"{self.dataset} takes none, crop, flip or crop-flip"
            )
        if self.dataset == "imagenet" and self.augment in ("crop", "crop-flip"):
            raise ValueError(f"imagenet takes none, flip, random-resized-crop(-flip); given {self.augment}")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale takes two shares 0 < low <= high <= 1, given {list(self.crop_scale)}")
        return self

    @property
    def resized(self) -> bool:
        """Whether views are random resized crops."""
        return self.augment.startswith("random-resized-crop")

    @property
    def on_disk(self) -> bool:
        """Whether images are decoded anew for every view, because all of them together do not fit into memory."""
        return self.dataset == "imagenet" or self.resized

    @property
    def side(self) -> int:
        """Side of the square image of a folder data set."""
        return self.image_size or IMAGENET_SIZE
