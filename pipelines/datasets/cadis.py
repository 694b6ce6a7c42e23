"""CaDIS, cataract surgery: three tasks of 8, 17 and 25 classes on the same images."""

import dataclasses

from pipelines.datasets.dataset import Found, Taxonomy, facts, find_splits

_VIDEOS = range(1, 26)


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set with the interface of the other modules: `taxonomy` and `find`.

    Attributes:
        number: int: 1 merges all instruments into one class; 2 merges them by type (17 classes; 7
            of the 36 raw classes are ignored); 3 also distinguishes their handles (25 classes; 11
            ignored).
    """

    number: int

    def taxonomy(self):
        """Returns the classes, with their groups: anatomies, instruments, others, rare."""
        return Taxonomy.from_facts(facts("cadis")["tasks"][str(self.number)])

    def find(self, source):
        """Lists the examples of each split that is present; videos decide the split.

        Args:
            source: where the folders `Video01` to `Video25`, or some of them, are; as for
                `pipelines.sources.open_source`.

        Returns:
            `Found`, with splits `train`, `val`, `test`.

        Raises:
            DataError: if the layout is not the expected one, or a file lacks its partner.
        """
        folders = {n: (f"Video{n:02d}/Images", f"Video{n:02d}/Labels") for n in _VIDEOS}
        expected = "Video01/Images/ and Video01/Labels/, and so on up to Video25"
        videos = find_splits(source, folders, expected=expected)
        splits = {
            split: [example for number in numbers for example in videos.get(number, ())]
            for split, numbers in facts("cadis")["split_videos"].items()
        }
        return Found(self.taxonomy(), {split: part for split, part in splits.items() if part})


TASKS = {f"cadis_task{number}": Task(number) for number in (1, 2, 3)}
