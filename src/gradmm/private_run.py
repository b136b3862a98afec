"""A private run, where it differs from another: what it refuses, its plan before any of it is spent, the release.

    refuse -> plan -> clips, from the LM's texts -> release, once -> figures

Real rows go from here to `private_target` and nowhere else. What the run folder keeps of them is the release and
the ledger: no count, no hash (which is a function of every row), no time that their number shows in, and no
message about them. The screen, which their owner looks at, shows the release's progress.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gradmm.config import GenerateConfig, RunConfig
from gradmm.data.rows import LabelledData
from gradmm.data.task import BoundTask
from gradmm.errors import ConfigError, RunFolderError
from gradmm.gradients.factors import Factors
from gradmm.gradients.geometry import geometry, planned_geometry
from gradmm.gradients.private_sums import Release
from gradmm.gradients.private_target import STATE, planned_spends, private_target
from gradmm.gradients.private_unigrams import public_words_clip
from gradmm.gradients.public_clip import public_clip, public_signal
from gradmm.gradients.spaces import Space
from gradmm.gradients.target import ReleasedTarget
from gradmm.gradients.unigrams import TokenShares
from gradmm.models import LanguageModel
from gradmm.privacy.config import UNIT, PrivacyConfig
from gradmm.privacy.ledger import LEDGER, Ledger
from gradmm.privacy.mechanism import Noise, SystemNoise
from gradmm.privacy.planning import TARGET, WORDS, Outlook, advice, make_plan, noise_norm, outlook, shares_of
from gradmm.privacy.words import advice_lines, plan_lines
from gradmm.private_settings import refuse_leaks
from gradmm.progress import Reporter, Stage, log, on_screen_alone
from gradmm.store import RunFolder

make_noise: Callable[[], Noise] = SystemNoise
"""Where noise comes from. A test may put its own here, and then the ledger says that nothing is private."""
_PUBLIC = "public"  # what public text says of the release, in the run folder
_DROWNED = 0.01  # of a text's words: the share of the commonest that tell of what it is about


class Public(NamedTuple):
    """Texts that the LM wrote, which are looked at where the release is not there yet."""

    gradients: Callable[[], Sequence[Sequence[Factors]]]
    """Their gradients in the space: per class, one set for each."""
    ids: Callable[[], Sequence[Sequence[Sequence[int]]]]
    """Their tokens."""


def refuse(config: GenerateConfig, output_dir: str | Path | None) -> None:
    """Whether a run can be as private as its settings promise.

    Raises:
        ConfigError: if it would look at real rows for more than the release, or nothing would keep its ledger.
    """
    refuse_leaks(config)
    if config.privacy is not None and output_dir is None:
        raise ConfigError(
            "a private run has a ledger of what it spends, and output_dir is None, so nothing would keep it; give "
            "a folder for the run"
        )


def refuse_real_rows(rows: LabelledData, setting: str, public: Mapping[str, Sequence[str]]) -> None:
    """Whether texts that are said to be public, by name, are those of the real rows.

    Raises:
        ConfigError: if they are.
    """
    for name, texts in public.items():
        if len(texts) == len(rows) and list(texts) == rows.texts():
            raise ConfigError(f"{setting} has {name}, which holds the real rows; leave it out")


def named(rows: LabelledData, config: GenerateConfig) -> dict[str, Any]:
    """What stands for the data in a private run's fingerprint: what the user called them, and nothing of them."""
    chosen = config.data.model_dump(mode="json") if isinstance(config, RunConfig) else {}
    own = {"name": rows.name, "text_column": rows.text_column, "label_column": rows.label_column}
    return {"settings": chosen, **own}


def check_complete(folder: RunFolder, config: GenerateConfig) -> None:
    """Whether a private run that has ended has the budget that is asked for; its fingerprint does not say.

    Raises:
        RunFolderError: if it has another one.
    """
    if config.privacy is None:
        return
    before, now = folder.read_json("metrics.json")["privacy"]["target_epsilon"], config.privacy.target_epsilon
    if before != now:
        raise RunFolderError(
            f"{folder.path} holds a run with other settings:\n  settings.privacy.target_epsilon: {before:g} -> "
            f"{now:g}\ncontinue it with the old ones, or give another folder"
        )


def with_bias(lm: LanguageModel, config: GenerateConfig) -> bool:
    """Whether the gradient of the head's bias is part of what is released: the centre follows from it, too."""
    return config.space.centred or (lm.head.bias_V is not None and config.distance.bias != "ignore")


def look_ahead(lm: LanguageModel, task: BoundTask, config: GenerateConfig, privacy: PrivacyConfig) -> Outlook:
    """The plan of a run, and what noise will leave of its target.

    Args:
        lm: the model.
        task: the rendering.
        config: for the space.
        privacy: the budget that is planned for.

    Raises:
        ConfigError: if no practical noise meets the budget.
    """
    plan = make_plan(privacy, shares_of(privacy, config.tilts))
    dimension = planned_geometry(lm, task, config.space, with_bias(lm, config)).dimension
    return outlook(privacy, plan, None if privacy.rows is None else dimension, len(task.task.label_names))


class PrivateRelease:
    """The release of a run's target, and all that is said about it.

    Args:
        lm: the model.
        task: the rendering.
        config: settings with privacy.
        folder: of the run, with its ledger.

    Raises:
        PrivacyBudgetError: if the budget does not hold the release; no row was read.
        RunFolderError: if the ledger there is another promise's, or was altered.
    """

    def __init__(self, lm: LanguageModel, task: BoundTask, config: GenerateConfig, folder: RunFolder) -> None:
        assert config.privacy is not None, "not a private run"
        self.lm, self.task, self.config, self.folder = lm, task, config, folder
        self.is_released = folder.load_state(STATE) is not None
        self.ledger = Ledger(folder.path, config.privacy, config.privacy.target_epsilon, self.is_released)
        self.privacy = config.privacy.model_copy(update={"target_epsilon": self.ledger.planned_epsilon})
        self.outlook = look_ahead(lm, task, config, self.privacy)
        self.with_bias = with_bias(lm, config)
        self.shares = TokenShares(task, len(lm.embeddings_VE))
        if not self.is_released:
            sizes = planned_geometry(lm, task, config.space, self.with_bias)
            labels = len(task.task.label_names)
            parts = {TARGET: (1.0, sizes.dimension), WORDS: (1.0, int(self.shares.words_V.sum()))}
            self.ledger.check(planned_spends(self.outlook.plan, labels, parts, make_noise()))
        self._figures: dict[str, Any] = {}

    def announce(self, reporter: Reporter) -> None:
        """Says what will be spent, on what, before it is."""
        if self.is_released:
            reporter.tell(f"Private: the target is released; nothing more is spent. {self._spent()}")
            return
        for line in plan_lines(self.outlook):
            reporter.tell(line)
        for line in advice_lines(self.outlook):
            log.warning("%s", line)
        reporter.tell(
            "Private: no real row has a part in anything but the release. Rows of more than "
            f"{self.task.room} tokens are cut; the run folder knows the data by their name alone."
        )

    def release(self, rows: LabelledData, space: Space, public: Public, reporter: Reporter) -> ReleasedTarget:
        """The noisy mean gradients of the real rows, and shares of words, drawn once per run and read from the run
        folder.

        Args:
            rows: the real rows; not touched where the release is there.
            space: fitted on public text.
            public: texts that the LM wrote, for the clips and for what to expect.
            reporter: shows progress, on the screen alone.

        Raises:
            PrivacyBudgetError: if the budget does not hold the release.
            RunFolderError: if the run folder cannot be written, or release and ledger do not belong together.
        """
        clip, signal, words_clip = self._look(public)
        if not self.is_released:
            self._expect(space, clip, signal, reporter)
            if words_clip is not None:
                self._expect_words(words_clip, reporter)
        batches = [
            rows.iter_batches(label, self.config.batch_size(self.lm.device)) for label in range(rows.num_classes)
        ]
        release = Release(space, geometry(self.lm, space, self.with_bias), clip, self.shares, words_clip)
        about = (self.lm, self.task, batches, release, self.privacy, self.outlook.plan, self.ledger, self.folder)
        if self.is_released:
            target, divisors = private_target(*about)
        else:
            with on_screen_alone(), reporter.stage("target", 100, "%") as stage:
                done = _percents(stage, len(rows))
                target, divisors = private_target(*about, done, make_noise())
            reporter.tell(self._spent())
        self._figures = self._told(release.sizes.dimension, divisors, signal)
        return target

    def figures(self) -> dict[str, Any]:
        """For `metrics.json`: what was released and spent. All of it is public."""
        return self._figures

    def settle(self) -> None:
        """Makes the ledger one of the run folder's artefacts; nothing is spent any more."""
        self.folder.write_text(LEDGER, self.ledger.path.read_text(encoding="utf-8"))

    def _look(self, public: Public) -> tuple[float, float, float | None]:
        """The clip, the norm of the mean clipped gradient of public text over it, and the clip for words."""
        kept = self.folder.load_state(_PUBLIC)
        if kept is None:
            found, clip = public.gradients(), self.privacy.max_grad_norm
            if clip == "public_median":
                sets = [part for own in found for part in own]
                clip = public_clip(sets, self.with_bias, self.privacy.clip_factor)
            words_clip = None
            if self.config.tilts:
                words_clip = public_words_clip(self.shares, [ids for own in public.ids() for ids in own])
            signal = public_signal(found, self.with_bias, clip)
            kept = {}, {"clip": clip, "signal": signal, "words_clip": words_clip}
            self.folder.save_state(_PUBLIC, *kept)
        return kept[1]["clip"], kept[1]["signal"], kept[1]["words_clip"]

    def _expect(self, space: Space, clip: float, signal: float, reporter: Reporter) -> None:
        rows, multiplier = self.outlook.rows, self.outlook.plan.noise_multiplier
        line = f"On texts that the LM wrote, a class's mean gradient has {signal:.3g} of the clip of {clip:.4g}"
        if rows is None:
            reporter.tell(f"{line}; how far it stands out depends on the numbers of rows, which are released too.")
            return
        dimension = geometry(self.lm, space, self.with_bias).dimension
        ratio = signal / noise_norm(multiplier, dimension, rows)
        reporter.tell(f"{line}: expect a signal-to-noise ratio of {ratio:.3g}.")
        if not self.outlook.advice:
            for sentence in advice(multiplier, dimension, rows, self.privacy, signal):
                log.warning("%s", sentence)

    def _expect_words(self, clip: float, reporter: Reporter) -> None:
        rows = self.outlook.rows
        if rows is None:
            return
        noise = self.outlook.plan.event(WORDS).noise_multiplier * clip / rows
        reporter.tell(
            f"Shares of words have a clip of {clip:.4g} and noise of standard deviation {noise:.2g}: a word that "
            f"is more than {3 * noise:.2g} of a class's text stands out of it."
        )
        if 3 * noise > _DROWNED:
            log.warning(
                "Hardly any word stands out of the noise; writer.unigram_step=0 leaves their part of the budget, "
                "%.3g%%, to the target",
                100 * self.privacy.words_fraction,
            )

    def _spent(self) -> str:
        marked = "" if self.ledger.is_private else ", with a test's noise: NOT PRIVATE"
        return (
            f"Released: epsilon {self.ledger.epsilon:.4f} of {self.ledger.target_epsilon:g} is spent at delta "
            f"{self.privacy.delta:.3g}{marked}."
        )

    def _told(self, dimension: int, divisors: Sequence[float], signal: float) -> dict[str, Any]:
        plan, line = self.outlook.plan, self._last(TARGET)
        multiplier = line["event"]["noise_multiplier"]
        noise = noise_norm(multiplier, dimension, min(divisors))
        return {
            "target": "released with noise; distances are to it, not to the real rows",
            "is_private": self.ledger.is_private,
            "unit": UNIT,
            "neighboring_relation": plan.neighboring_relation,
            "target_epsilon": self.ledger.target_epsilon,
            "epsilon": self.ledger.epsilon,
            "delta": plan.delta,
            "accountant": plan.accountant,
            "accountant_version": plan.accountant_version,
            "noise_multiplier": multiplier,
            "clip": line["bound"],
            "dimension": dimension,
            "divisors": divisors,
            "noise_norm": noise,
            "most_snr": 1 / noise,
            "expected_signal": signal,
            "expected_snr": signal / noise,
            **({"words": self._told_of_words(divisors)} if self.config.tilts else {}),
        }

    def _told_of_words(self, divisors: Sequence[float]) -> dict[str, Any]:
        line = self._last(WORDS)
        multiplier = line["event"]["noise_multiplier"]
        return {
            "noise_multiplier": multiplier,
            "clip": line["bound"],
            "dimension": int(self.shares.words_V.sum()),
            "noise_std": multiplier * line["bound"] / min(divisors),
        }

    def _last(self, release: str) -> dict[str, Any]:
        """What the ledger says of a release, of which the last draw counts."""
        return next(line for line in reversed(self.ledger.spent) if line["release"] == release)


def _percents(stage: Stage, rows: int) -> Callable[[int], None]:
    """Tells a stage of 100 units how far it is, in whole ones: their sum would otherwise be the number of rows."""
    done = 0

    def told(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if step := 100 * done // rows - 100 * before // rows:
            stage.advance(step)

    return told
