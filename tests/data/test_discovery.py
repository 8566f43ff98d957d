"""Which files a path stands for: folders, links, patterns, what is left out; and that only regular files are opened."""

import os
import socket

import pytest

from selfsup.data.discovery import find, is_dataset, split_of
from selfsup.errors import UserError
from selfsup.files import inside, opened, read_bytes


def write(path, content="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def found(path):
    return find(path, lambda name: name.endswith((".txt", ".md")), "texts from .txt, .md")


def names(path, root):
    return [os.path.relpath(file.path, root) for file in found(path).files]


def refused(work, *words):
    with pytest.raises(UserError) as caught:
        work()
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_a_folder_is_read_with_all_folders_in_it_but_hidden_ones(tmp_path):
    for name in ("b.txt", "a/x.txt", "a.txt", "a-b/y.md", ".hidden/z.txt", ".h.txt", "n.pdf", "m.pdf", "LICENSE"):
        write(tmp_path / name)
    assert names(tmp_path, tmp_path) == ["a/x.txt", "a-b/y.md", "a.txt", "b.txt"]
    told = found(tmp_path).told()
    assert f".pdf files: 2 ({tmp_path}/m.pdf and others)" in told
    assert f"files without an extension: 1 ({tmp_path}/LICENSE)" in told
    assert found(tmp_path / "a").told() == ""
    assert names(tmp_path / "b.txt", tmp_path) == ["b.txt"]


def test_links_are_followed_once_and_never_round_in_circles(tmp_path):
    for name in ("here/a/1.txt", "elsewhere/2.txt", "3.txt"):
        write(tmp_path / name)
    here = tmp_path / "here"
    (here / "0").symlink_to(here / "a")  # goes by its own name
    (here / "a" / "loop").symlink_to(here)
    (here / "self").symlink_to(here / "self")
    (here / "nothing.txt").symlink_to(here / "no.txt")
    (here / "up").symlink_to(tmp_path)
    for name in ("there", "there-again"):
        (here / name).symlink_to(tmp_path / "elsewhere")
    (here / "3.txt").symlink_to(tmp_path / "3.txt")
    expected = ["3.txt", "a/1.txt", "there/2.txt"]
    assert names(here, here) == expected
    assert names(here / "**", here) == expected
    assert names(here / "**" / "*.txt", here) == expected
    left_out = found(here).left_out
    assert left_out["links to nothing"] == (2, str(here / "nothing.txt"))
    assert left_out["links to a folder above"] == (1, str(here / "up"))


def test_links_among_siblings_take_no_longer_than_folders(tmp_path):
    """Each folder links twice to the next one, so there are 2^40 paths to the last."""
    for number in range(40):
        (tmp_path / f"{number}").mkdir()
        for name in "ab":
            (tmp_path / f"{number}" / name).symlink_to(tmp_path / f"{number + 1}")
    write(tmp_path / "40" / "x.txt")
    assert names(tmp_path / "0", tmp_path / "0") == ["/".join("a" * 40) + "/x.txt"]
    assert len(found(tmp_path / "0" / "**" / "*.txt").files) == 1


def test_what_may_not_be_read_and_what_is_no_regular_file_is_left_out(tmp_path, monkeypatch):
    write(tmp_path / "a.txt")
    write(tmp_path / "closed" / "b.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)
        server.bind("socket.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/urandom")
    listdir = os.listdir

    def listed(folder):
        if os.path.basename(folder) == "closed":  # tests may run as root, to whom nothing is closed
            raise PermissionError(13, "Permission denied")
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", listed)
    assert names(tmp_path, tmp_path) == ["a.txt"]
    left_out = found(tmp_path).left_out
    assert left_out["folders that may not be read"] == (1, str(tmp_path / "closed"))
    assert left_out["pipes, sockets and devices"][0] == 3
    refused(lambda: found(tmp_path / "closed"), "folders that may not be read: 1")
    write(tmp_path / "open" / "b.txt")
    assert found(tmp_path / "*" / "*").left_out["folders that may not be read"] == (1, str(tmp_path / "closed"))
    for name in ("pipe.txt", "socket.txt", "zero.txt"):
        refused(lambda name=name: found(tmp_path / name), "pipes, sockets and devices: 1", name)


def test_patterns(tmp_path, monkeypatch):
    for name in ("a/1.txt", "a/deep/2.txt", "b/3.txt", "b/4.pdf", ".c/5.txt", "x[1].txt", "x1.txt"):
        write(tmp_path / name)
    assert names(tmp_path / "*" / "*.txt", tmp_path) == ["a/1.txt", "b/3.txt"]
    assert names(tmp_path / "**" / "*.txt", tmp_path) == ["a/1.txt", "a/deep/2.txt", "b/3.txt", "x1.txt", "x[1].txt"]
    assert names(tmp_path / "[ab]", tmp_path) == ["a/1.txt", "a/deep/2.txt", "b/3.txt"]
    assert names(tmp_path / "x[1].txt", tmp_path) == ["x[1].txt"]
    assert names(tmp_path / ".c" / "*", tmp_path) == [".c/5.txt"]
    assert found(tmp_path / "b" / "*").left_out[".pdf files"][0] == 1
    refused(lambda: found(tmp_path / "*.md"), "No file matches")
    monkeypatch.chdir(tmp_path)
    assert [file.path for file in found("**/*.txt").files] == names(tmp_path / "**" / "*.txt", tmp_path)
    assert [file.path for file in found("a/*").files] == ["a/1.txt", "a/deep/2.txt"]
    assert [file.path for file in found("*1.txt").files] == ["x1.txt"]


def test_braces(tmp_path):
    for number in range(12):
        write(tmp_path / f"shard-{number:03d}.txt")
    write(tmp_path / "{odd}.txt")
    assert names(tmp_path / "shard-{000..003}.txt", tmp_path) == [f"shard-00{n}.txt" for n in range(4)]
    assert names(tmp_path / "shard-{008..011}.txt", tmp_path)[-1] == "shard-011.txt"
    assert names(tmp_path / "shard-0{0,1}{1,0}.{txt,txt}", tmp_path) == [
        f"shard-0{n}.txt" for n in ("00", "01", "10", "11")
    ]
    assert len(found(tmp_path / "shard-0{0*,1?}.txt").files) == 12
    assert names(tmp_path / "{odd}.txt", tmp_path) == ["{odd}.txt"]
    refused(lambda: found(tmp_path / "shard-{010..012}.txt"), "no file or folder", "shard-012.txt")
    refused(lambda: found(tmp_path / "shard-{0..999999999}.txt"), "100,000 patterns")
    refused(lambda: found(tmp_path / ("{0..9}" * 200)), "100,000 patterns")


def test_what_is_not_there(tmp_path):
    write(tmp_path / "a.pdf")
    refused(lambda: found(tmp_path / "no.txt"), "There is no file or folder")
    refused(lambda: found("x" * 5000), "There is no file or folder")
    refused(lambda: found("a\0b.txt"), "null character", r"a\x00b.txt")
    refused(lambda: found(tmp_path / "a.pdf"), "no readable kind", ".txt, .md")
    refused(lambda: found(tmp_path), "no file of a readable kind", ".pdf files: 1")


def test_a_folder_that_is_a_data_set_is_one(tmp_path):
    for name in (
        "saved/state.json",
        "saved/dataset_info.json",
        "saved/data.txt",
        "t.lance/_versions/1",
        "t.lance/data/1",
    ):
        write(tmp_path / name)
    assert names(tmp_path, tmp_path) == ["saved", "t.lance"]
    assert names(tmp_path / "saved", tmp_path) == ["saved"]
    assert names(tmp_path / "**", tmp_path) == ["saved", "t.lance"]
    assert is_dataset(os.listdir(tmp_path / "saved"))
    assert not is_dataset(os.listdir(tmp_path))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train/a.txt", "train"),
        ("deep/Test/a.txt", "test"),
        ("val/train.txt", "validation"),
        ("train-00000-of-00001.parquet", "train"),
        ("TinyStoriesV2-GPT4-valid.txt", "validation"),
        ("wiki.test.tokens.txt", "test"),
        ("trains.txt", None),
        ("contest/detail.txt", None),
        ("train_and_test.txt", None),
    ],
)
def test_the_split_that_a_name_says(name, split):
    assert split_of(name) == split


def test_splits_are_left_out_by_name(tmp_path):
    for name in ("train-0.txt", "train-1.txt", "test-0.txt", "validation-0.txt", "README.md"):
        write(tmp_path / name)
    both, training = found(tmp_path), found(tmp_path).of("training")
    assert len(both.files) == 5
    assert [os.path.basename(file.path) for file in training.files] == ["README.md", "train-0.txt", "train-1.txt"]
    assert training.left_out["files of the test split"][0] == 1
    assert both.told() == ""
    assert len(found(tmp_path / "*").of("training").files) == 3
    assert [os.path.basename(file.path) for file in both.of("test").files] == ["README.md", "test-0.txt"]
    refused(lambda: found(tmp_path / "README.md").of("test"), "no test split")
    assert len(found(tmp_path / "test-0.txt").of("training").files) == 1
    os.remove(tmp_path / "train-0.txt")
    os.remove(tmp_path / "train-1.txt")
    assert len(found(tmp_path).of("training").files) == 3  # nothing says that they are not to be trained on


def test_only_regular_files_of_a_bounded_size_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/urandom"):
        with pytest.raises(OSError, match="no regular file"):
            read_bytes(path, 10)
    with pytest.raises(OSError, match="null character"):
        read_bytes("a\0b", 10)
    path = write(tmp_path / "a", "0123456789")
    assert read_bytes(path, 10) == b"0123456789"
    with pytest.raises(OSError, match="more than 9 bytes"):
        read_bytes(path, 9)
    with opened(path) as file:
        assert file.read() == b"0123456789"
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="more than 10 bytes"):
        read_bytes(tmp_path / "sparse", 10)


def test_metadata_stays_inside_its_folder(tmp_path):
    write(tmp_path / "root" / "a")
    write(tmp_path / "rooted")
    (tmp_path / "root" / "out").symlink_to(tmp_path / "rooted")
    assert inside(tmp_path / "root", "b/../a") == os.path.realpath(tmp_path / "root" / "a")
    for name in ("../rooted", "/etc/passwd", "out", "a\0b", "b/../../rooted"):
        with pytest.raises(OSError, match="leads out"):
            inside(tmp_path / "root", name)
