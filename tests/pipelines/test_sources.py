import io
import pickle
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from pipelines.errors import DataError
from pipelines.sources import Member, fingerprint, open_source
from tests.pipelines.tiny_data import pack

KINDS = ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz")


@pytest.fixture
def folder(tmp_path):
    """Two files in folders, one hidden."""
    folder = tmp_path / "unpacked"
    for name in ("set/a/one.png", "set/b/deep/two.PNG", "set/b/.hidden", "read me.txt"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 100)
    return folder


def packed(folder, kind, below=""):
    archive = folder.parent / f"packed.{kind}"
    pack(archive, folder, below)
    return archive


def look(place):
    """All that a place gives, as plain values."""
    files = {
        name: (file.stem, file.suffix, file.read_bytes()) for name, file in place.files().items()
    }
    return files, {name: look(place / name) for name in place.folders()}


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_as_good_as_its_folder(folder, kind):
    archive = packed(folder, kind)
    expected = look(open_source(folder).find("a"))
    assert expected[0] == {}
    assert expected[1]["b"] == (
        {},
        {"deep": ({"two.PNG": ("two", ".PNG", b"set/b/deep/two.PNG" * 100)}, {})},
    )
    found = open_source(archive).find("a", "b/deep", "a/one.png")
    assert look(found) == expected
    assert str(found) == f"{archive}:set"
    assert found.file("b/deep/two.PNG").read_bytes() == b"set/b/deep/two.PNG" * 100
    assert found.file("b/.hidden") is found.file("b/none") is found.file("c/none") is None
    assert found.has("b/deep/two.PNG") and found.has("b/deep") and not found.has("deep")
    assert str(found.file("a/one.png")) == f"{archive}:set/a/one.png"


def test_an_archive_in_the_folder_counts(folder):
    packed(folder, "zip")
    place = open_source(folder.parent).find("a", "b")
    assert str(place) == f"{folder}/set"  # What is unpacked comes first.
    folder.rename(folder.parent / ".elsewhere")
    assert str(open_source(folder.parent).find("a", "b")).endswith("packed.zip:set")


def test_several_sources(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (folder / "set" / "b").rename(tmp_path / "other" / "b")
    archive = packed(folder, "tar.gz")
    source = open_source([str(archive), tmp_path / "other"])
    assert str(source.find("a")) == f"{archive}:set"
    assert str(source.find("b")) == str(tmp_path / "other")
    assert source.find("a", "b") is None and source.find("c") is None
    assert source.describe() == "b/, packed.tar.gz:read me.txt, packed.tar.gz:set/"


def test_two_of_one_rank(folder, tmp_path):
    (folder / "copy" / "a").mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"a must be in one place\. They are in .*/copy and in .*/set"
    ):
        open_source(folder).find("a")
    (folder / "a").mkdir()  # What is less deep comes first.
    assert str(open_source(folder).find("a")) == str(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_members_travel(folder, kind):
    member = open_source(packed(folder, kind)).find("one.png").file("one.png")
    assert isinstance(member, Member)
    assert pickle.loads(pickle.dumps(member)).read_bytes() == b"set/a/one.png" * 100


@pytest.mark.parametrize("kind", ("zip", "tar"))
def test_fingerprint(folder, kind):
    prints = []
    for content in (b"a" * 10, b"b" * 11):
        (folder / "set/a/one.png").write_bytes(content)
        member = open_source(packed(folder, kind)).find("one.png").file("one.png")
        prints.append(fingerprint(member))
        assert prints[-1][:2] == ["one.png", len(content)]
    assert prints[0] != prints[1]


def evil_zip(path, name, link=None):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.png", b"good")
        info = zipfile.ZipInfo(name)
        info.create_system = 3
        if link:
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, link or b"bad")


def evil_tar(path, name, link=None, kind=tarfile.SYMTYPE):
    with tarfile.open(path, "w") as archive:
        for member, content in (("good.png", b"good"), (name, b"bad")):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            if link and member == name:
                info.type, info.linkname, info.size = kind, link, 0
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("make, suffix", [(evil_zip, "zip"), (evil_tar, "tar")])
@pytest.mark.parametrize(
    "name, link",
    [
        ("/etc/passwd.png", None),
        ("../bad.png", None),
        ("a/../../bad.png", None),
        ("a\\..\\..\\bad.png", None),
        ("C:/bad.png", None),
        ("bad.png", "/etc/passwd"),
        ("bad.png", "../passwd"),
        ("a/bad.png", "../../passwd"),
        ("a/bad.png", "x/../../../passwd"),
    ],
)
def test_members_that_lie_or_point_outside(tmp_path, make, suffix, name, link):
    path = tmp_path / f"evil.{suffix}"
    make(path, name, link)
    with pytest.raises(
        DataError, match=r"No member of an archive may lie or point outside"
    ) as error:
        open_source(path).find("good.png")
    assert str(path) in str(error.value) and repr(name) in str(error.value)


@pytest.mark.parametrize("make, suffix", [(evil_zip, "zip"), (evil_tar, "tar")])
def test_links_inside(tmp_path, make, suffix):
    path = tmp_path / f"links.{suffix}"
    make(path, "a/also.png", "../good.png")
    assert open_source(path).find("a").file("a/also.png").read_bytes() == b"good"
    make(path, "a/also.png", "gone.png")
    assert open_source(path).find("good.png").file("a/also.png") is None
    make(path, "also.png", "also.png")  # A link to itself.
    assert open_source(path).find("good.png").file("also.png") is None


def test_hard_links_and_devices(tmp_path):
    path = tmp_path / "links.tar"
    evil_tar(path, "a/also.png", "good.png", tarfile.LNKTYPE)
    assert open_source(path).find("a").file("a/also.png").read_bytes() == b"good"
    evil_tar(path, "a/also.png", "/etc/passwd", tarfile.LNKTYPE)
    with pytest.raises(DataError, match="may lie or point outside"):
        open_source(path).find("a")
    evil_tar(path, "pipe", "none", tarfile.FIFOTYPE)
    with pytest.raises(DataError, match="'pipe', a device or pipe"):
        open_source(path).find("good.png")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_archives(folder, kind):
    archive = packed(folder, kind)
    content = archive.read_bytes()
    for damaged in (content[: len(content) // 2], b"nonsense" * 100, b""):
        archive.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{archive} cannot be read as an archive"):
            open_source(archive).find("a")


def test_damaged_member(folder):
    archive = packed(folder, "zip")
    member = open_source(archive).find("one.png").file("one.png")
    content = bytearray(archive.read_bytes())
    place = content.index(b"set/a/one.png") + len("set/a/one.png") + 3
    content[place] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"packed.zip:set/a/one.png is damaged"):
        member.read_bytes()


def test_encrypted(folder):
    archive = packed(folder, "zip")
    content = bytearray(archive.read_bytes())
    for signature, place in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        start = content.index(signature)
        content[start + place] |= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"packed.zip is encrypted\. Unpack it"):
        open_source(archive).find("a")


def test_no_source(tmp_path):
    with pytest.raises(
        DataError, match=r"gone does not exist\. Give a folder, or a zip or tar file"
    ):
        open_source(tmp_path / "gone")
    (tmp_path / "text").write_text("")
    with pytest.raises(DataError, match="text is neither a folder nor a zip or tar file"):
        open_source([tmp_path, tmp_path / "text"])


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_head_of_a_member(tmp_path, kind):
    """The rest of a member is not decompressed: damage there does not show."""
    (tmp_path / "set").mkdir()
    content = np.random.default_rng(0).bytes(1 << 20)
    (tmp_path / "set/a.bin").write_bytes(content)
    archive = tmp_path / f"set.{kind}"
    pack(archive, tmp_path / "set")
    if kind == "zip":
        packed = bytearray(archive.read_bytes())
        packed[1 << 19] ^= 0xFF
        archive.write_bytes(packed)
    member = open_source(archive).find("a.bin").file("a.bin")
    assert member.read_head(1000) == content[:1000]
    if kind == "zip":
        with pytest.raises(DataError, match="is damaged"):
            member.read_bytes()
    else:
        assert member.read_head(1 << 22) == member.read_bytes() == content


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "~nobody_of_this_name/a"])
def test_names_that_no_file_can_have(folder, name):
    with pytest.raises(DataError, match=r"does not exist\. Give a folder, or a zip or tar file"):
        open_source(name)
    assert open_source(folder).find(name) is None
