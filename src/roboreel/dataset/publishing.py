"""A dataset on its way out: episodes as a folder that others read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roboreel.dataset.views import EpisodeViews
from roboreel.errors import DatasetBusyError, EpisodeNotFoundError
from roboreel.store import AskedMode, AskedOptions, CameraStorage

if TYPE_CHECKING:
    from roboreel.convert import ExportReport, ExportVersion
    from roboreel.hub import PushReport


class Publishing(EpisodeViews):
    """What is shown of a dataset, for other programs."""

    def to_lerobot(  # noqa: PLR0913 - LeRobot's own limits of files among them
        self,
        folder: str | Path,
        version: ExportVersion = "v3.0",
        *,
        image_mode: AskedMode = None,
        video_options: AskedOptions = None,
        leave_out: Collection[str] = (),
        chunks_size: int = 1000,
        data_files_size_in_mb: float = 100,
        video_files_size_in_mb: float = 200,
        force: bool = False,
        progress: bool = False,
    ) -> ExportReport:
        """Write the episodes as a LeRobot folder, which `LeRobotDataset` opens.

        Episodes are numbered from 0, what a ring has left of one begins at frame 0. Video is taken over without
        decoding where an episode begins with a key frame, else it is coded anew. Statistics are LeRobot's own, of each
        episode, with quantiles. The folder is built beside its place, as `.NAME.conversion`, and there whole or not at
        all. Of a view, what it shows.

        LeRobot wants `timestamp` to be k / fps. Where the recorded ones are not (by 0.1 ms), those are written, and the
        recorded ones as `recorded_timestamp`. What has no `task` gets an empty one; shape (1,) is LeRobot's for
        scalars.

            report = dataset.to_lerobot("outputs/pusht_v3")
            print(report.episodes, report.episodes_copied, report.episodes_encoded)

        Args:
            folder: A new or an empty directory, outside the dataset.
            version: "v3.0" or "v2.1".
            image_mode: "video" or "png" (images among the rows) for all cameras or {camera key: mode}. None: video
                stays video, and everything else becomes images, without loss.
            video_options: How frames are coded that do not go over as video.
            leave_out: Keys that do not go along.
            chunks_size: Files in a directory at most.
            data_files_size_in_mb, video_files_size_in_mb: Of a file of v3.0 (MiB), beyond which a new one is begun.
            force: Begin also where the forecast says that it does not fit.
            progress: Show a progress bar, on a terminal.

        Raises:
            InvalidArgumentError: the place is not empty; a key that LeRobot's format cannot hold; no such version.
            DiskSpaceError: it does not fit. StorageDirCorruptError: what is to be written is damaged.
            DatasetBusyError: another process has changed the dataset meanwhile.
        """
        from roboreel.convert import ExportOptions, export_lerobot  # brings Parquet in: a robot records without it

        options = ExportOptions(
            version,
            CameraStorage.parse(image_mode, video_options),
            chunks_size,
            data_files_size_in_mb,
            video_files_size_in_mb,
            leave_out,
            force,
            progress,
        )
        self._need_store()
        with self._opening.still("to_lerobot") as store:
            before = store.refresh()
            with store.lock:
                store.settle()
                rows = self._rows(store)
            if not len(rows):
                raise EpisodeNotFoundError(f"{store.root}: no episode is left to be written")

            def check_same() -> None:
                if store.refresh() != before:
                    raise DatasetBusyError(f"{store.root} was written meanwhile; take a snapshot, and export that")

            return export_lerobot(store, rows, Path(folder), options, check_same)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        license: str | None = None,  # noqa: A002 - the Hub's own word
        token: str | bool | None = None,
        commit_message: str | None = None,
        progress: bool = True,
        **options: Any,
    ) -> PushReport:
        """Put the episodes up on the Hugging Face Hub as a LeRobot dataset, with a card, in one commit.

        It is written as a folder beside the dataset first. Of that, only what is not on the Hub already is uploaded,
        large files before the commit: after an interruption, those that are there are not sent again. Other files
        beneath `data`, `meta` and `videos` are taken away there, as readers would take them for the dataset's. On a
        card that is there already, what others have written stays.

            dataset.push_to_hub("me/my_arm", private=True, license="apache-2.0")

        Args:
            repo_id: As "me/my_arm"; made where there is none.
            private: Refused where the repository is there already, and public.
            license: As the Hub calls it: "apache-2.0", "mit", "cc-by-4.0".
            token: One that may write. None: HF_TOKEN, or who is logged in.
            commit_message: None: "Upload with roboreel".
            progress: Show progress bars, on a terminal.
            options: Those of `to_lerobot`, as `version="v2.1"` or `leave_out=["observation.images.wrist"]`.

        Raises:
            HubError: the Hub does not take it, or cannot be reached. And what `to_lerobot` raises.
        """
        from roboreel.hub import push_folder, push_place

        with push_place(self.storage_dir) as folder:
            self.to_lerobot(folder, **options, progress=progress)
            return push_folder(
                folder,
                repo_id,
                private=private,
                token=token,
                license_id=license,
                message=commit_message,
                progress=progress,
            )
