"""Write docs/lerobot.md from docs/results/drop_in.json.

python -m scripts.write_drop_in
"""

from __future__ import annotations

from typing import Any

from scripts.drop_in import POLICIES, RESULTS, read_results

PAGE = RESULTS.parents[1] / "lerobot.md"

HEAD = """# LeRobot's training on our dataset

Nothing here is typed in: `python -m scripts.write_drop_in` writes this page from `docs/results/drop_in.json`, which
`python -m scripts.drop_in` records in the environment that `make test-lerobot` makes:

    PYTHONPATH=src ~/.cache/roboreel/lerobot-*/bin/python -m scripts.drop_in

LeRobot's own `lerobot-train` is run three times on the sample ([examples/data/pusht](../examples/data/pusht)) with one
seed: on LeRobotDataset, whose video PyAV decodes; on ours with the video as it is; and on ours with raw pixels
(`decode_images=True`). The policies are small ones, so that the share of the data is larger than that of large ones.
Batches are read between the steps (`--num_workers=0`), so that `data_s` is what reading and normalising one takes.

Losses and gradient norms of every step are compared bit for bit.
"""

TAIL = """
Medians of all steps but the first, on a machine that had other work meanwhile: `update_s`, in which all three do the
same, tells how far times can be trusted. `share` is the data's of a step.
"""


def page(results: dict[str, Any]) -> str:
    rows = [
        "| policy | steps, batch | losses, first and last | dataset | losses equal | `data_s` | `update_s` | share |",
        "| --- | --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for policy, found in results.items():
        for name, told in (("lerobot", "LeRobotDataset"), ("video", "ours, video"), ("pixels", "ours, raw pixels")):
            data_s, update_s = found["data_s"][name], found["update_s"][name]
            equal = "" if name == "lerobot" else "yes" if found["equal"][name] else "**no**"
            about = (
                policy,
                f"{found['steps']}, {found['batch_size']}",
                f"{found['losses'][0]:.4g}, {found['losses'][-1]:.4g}",
            )
            first = about if name == "lerobot" else ("", "", "")
            share = f"{data_s / (data_s + update_s):.1%}"
            rows.append(f"| {' | '.join(first)} | {told} | {equal} | {data_s:.4f} | {update_s:.3f} | {share} |")
    sizes = [f"- {policy}: `{' '.join(POLICIES[policy])}`" for policy in results]
    last = list(results.values())[-1]
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    return "\n".join([HEAD, *rows, TAIL, *sizes, "", f"{last['date']}, {last['machine']}, {versions}.", ""])


if __name__ == "__main__":
    PAGE.write_text(page(read_results()), encoding="utf-8")
