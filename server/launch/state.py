"""What our routes need of a started guard, and its first critique. Builds nothing (plugin.py)."""

import asyncio
import logging
from dataclasses import dataclass, field

from guard.adapters import Adapters
from guard.calibrations import Calibrations
from guard.critic import Critic
from guard.errors import GuardError
from guard.policies import Policies
from guard.rollouts import Rollouts
from guard.store.adapters import AdapterStore
from guard.store.policies import PolicyStore
from guard.store.replicas import ReplicaStore
from guard.store.review import ReviewStore
from guard.store.rollouts import RolloutStore
from guard.store.runs import RunStore
from guard.store.traffic import TrafficStore
from guard.template import ChatFormat
from server.auth.access import Access
from server.auth.limits import Limits
from server.auth.sessions import Sessions
from server.jobs.rollout_decision import Margins
from server.jobs.run_control import RunControl
from server.launch.policy_reload import PolicySource
from server.routes.guardrail import Guardrail
from server.routes.model_access import ModelAccess
from server.routes.moderations import Moderator

_WARM_UP_TEXT = "Hello."
_RETRY_S = 1.0
_log = logging.getLogger("vllm.setback")


@dataclass
class GuardState:
    """What our routes need, in `app.state.setback`. Ready once a real critique has finished."""

    moderator: Moderator
    guardrail: Guardrail
    critic: Critic
    chat_format: ChatFormat
    adapters: Adapters
    calibrations: Calibrations
    model_access: ModelAccess
    access: Access
    limits: Limits
    policies: Policies
    policy_store: PolicyStore
    policy_source: PolicySource
    replicas: ReplicaStore
    reviews: ReviewStore
    runs: RunStore
    registry: AdapterStore
    rollouts: Rollouts
    rollout_store: RolloutStore
    rollout_margins: Margins
    control: RunControl
    traffic: TrafficStore
    sessions: Sessions
    ready: bool = field(default=False)

    async def warm_up(self) -> None:
        """Makes a first critique, which triggers compilation and fits the policies' criteria to
        their examples. Afterwards the server is ready."""
        subject = self.critic.text(self.chat_format.encode(_WARM_UP_TEXT))
        criteria = self.policies.current.criteria
        while not self.ready:
            try:
                with self.adapters.use() as lora_request:
                    await self.critic.judge(
                        subject,
                        categories_from=0.0,
                        criteria=criteria,
                        lora_request=lora_request,
                    )
            except GuardError as error:
                _log.warning("The first critique failed and is retried: %s", error)
                await asyncio.sleep(_RETRY_S)
            else:
                self.ready = True
