"""The phases of a run, in the order in which they are done."""

from entroloop.launcher.run.phase import Phase
from entroloop.launcher.run.phases.encode import ENCODE
from entroloop.launcher.run.phases.evaluate import EVALUATE
from entroloop.launcher.run.phases.prepare import PREPARE
from entroloop.launcher.run.phases.sample import SAMPLE
from entroloop.launcher.run.phases.select import SELECT
from entroloop.launcher.run.phases.train import TRAIN

PHASES: tuple[Phase, ...] = (PREPARE, SELECT, TRAIN, SAMPLE, ENCODE, EVALUATE)
BY_NAME = {phase.name: phase for phase in PHASES}
