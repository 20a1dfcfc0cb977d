"""Any other dataset goes through tfds, and its failures are one sentence."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from adabatch_jax.data.datasets.preparation import prepare
from adabatch_jax.system.errors import UsageError


def run_with_builder(body, tmp_path, image):
    """Runs `body` in a process that has a tfds builder of its own, and no TensorFlow."""
    code = f"""
        import sys
        from importlib.machinery import PathFinder

        class WithoutTensorFlow:
            def find_spec(name, *arguments):
                return None if name == "tensorflow" else PathFinder.find_spec(name, *arguments)

        sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTensorFlow
        import cv2, numpy as np
        import tensorflow_datasets as tfds
        from adabatch_jax.data.datasets.preparation import prepare
        from adabatch_jax.data.tfds_images import tfds_source
        from adabatch_jax.data.datasets.known_datasets import dataset_spec
        from adabatch_jax.system.errors import AdabatchError

        class Pictures(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            def _info(self):
                label = tfds.features.ClassLabel(num_classes=3)
                features = {{"image": tfds.features.Image(), "label": label}}
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )
            def _split_generators(self, dl_manager):
                sizes = {{"train": 6, "validation": 3}}
                return {{split: self._generate_examples(n) for split, n in sizes.items()}}
            def _generate_examples(self, n):
                for i in range(n):
                    pixels = np.full((20 + i, 30, 3), (10 * i, 100, 200), np.uint8)
                    png = cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()
                    yield i, {{"image": {image}, "label": i % 3}}

        class NoLabel(Pictures):
            def _info(self):
                depth = tfds.features.Scalar(np.int32)
                features = {{"image": tfds.features.Image(), "depth": depth}}
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

        folder = sys.argv[1]
    """
    code = textwrap.dedent(code) + textwrap.dedent(body)
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "data")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stderr
    return done


def test_another_dataset_goes_through_tfds(tmp_path):
    done = run_with_builder(
        """
        path = prepare("pictures", folder)
        assert path == prepare("pictures", folder)
        spec = dataset_spec("pictures", folder)
        print(spec.num_classes, spec.image_shape, spec.test_split, spec.num_examples, spec.mean)
        source = tfds_source("pictures", "train", folder, image_size=10)
        batch = source.read(np.arange(6))
        print(source.image_shape, batch["image"].shape, sorted(batch["label"].tolist()))
        print(sorted(batch["image"][:, 5, 5].tolist()))
        for call in (lambda: tfds_source("pictures", "train", folder),
                     lambda: prepare("no_label", folder)):
            try:
                call()
            except AdabatchError as error:
                print(error)
        """,
        tmp_path,
        image="png",
    )
    spec, shape, pixels, size_error, label_error = done.stdout.splitlines()
    assert spec == "3 None validation 6 (0.485, 0.456, 0.406)"
    assert shape == "(10, 10, 3) (6, 10, 10, 3) [0, 0, 1, 1, 2, 2]"
    assert json.loads(pixels) == [[10 * i, 100, 200] for i in range(6)]
    assert "the images of 'pictures' differ in size; give `image_size`" in size_error
    assert "dataset 'no_label' has no class label; its features are depth, image." in label_error
    assert done.stderr == ""


def test_without_tensorflow_the_extra_is_named(tmp_path, files_in):
    done = run_with_builder(
        """
        try:
            prepare("pictures", folder)
        except AdabatchError as error:
            print(type(error).__name__, error)
        """,
        tmp_path,
        image="pixels",
    )
    assert done.stdout.startswith("UsageError preparing 'pictures' needs TensorFlow")
    assert 'pip install "adabatch_jax[prepare]"' in done.stdout
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
    assert files_in(tmp_path / "data") == []


def test_a_failure_of_tfds_is_one_sentence(tmp_path):
    done = run_with_builder(
        """
        try:
            prepare("pictures", folder)
        except AdabatchError as error:
            print(type(error).__name__, error)
        """,
        tmp_path,
        image="1 / 0",
    )
    assert done.stdout.startswith("StorageError dataset 'pictures' can't be prepared in ")
    assert "division by zero" in done.stdout
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_imagenet_needs_a_folder(tmp_path):
    with pytest.raises(UsageError, match="'imagenet2012' .* --from"):
        prepare("imagenet2012", tmp_path)
