"""CrossQ and TQC of sb3-contrib."""

from sb3_contrib import TQC, CrossQ

from agents.algorithms import Algorithm
from agents.off_policy.hyperparameters import OfContinuous
from agents.off_policy.learner import OffPolicyLearner, share_actor

CROSSQ_ALGORITHM = Algorithm(
    title="CrossQ",
    hyperparameters=OfContinuous,
    make=lambda plan: OffPolicyLearner(
        plan,
        model_class=CrossQ,
        network_class="EncodedActor",
        share_layers=share_actor,
        network_options={"renormalized": True},
        flat=True,
    ),
)
TQC_ALGORITHM = Algorithm(
    title="TQC",
    hyperparameters=OfContinuous,
    make=lambda plan: OffPolicyLearner(plan, model_class=TQC, network_class="EncodedActor", share_layers=share_actor),
)
