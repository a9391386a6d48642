"""The rules of a room: who may join, in what role, and what outlives the members.

Rules of this file:

1. A method checks everything before it changes anything. A refusal changes nothing, so a
   store may run a decision, discard the outcome and run it again.
2. A decision needs the room and the ``Standing`` of one user, never the list of all
   members: a store can make it atomic over two small records.
3. A room that was created or changed, or that got a ban, role or invite, keeps its
   options, bans and roles until it is deleted: a private room never comes back public.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from enum import Enum, IntEnum, StrEnum, auto
from types import MappingProxyType
from typing import Any

from eyewall.domain.duration import Seconds, count, seconds
from eyewall.domain.errors import JoinForbidden, RoomExists, RoomFull
from eyewall.domain.identity import ConnId, NodeId, RoomId, UserId, names


class RoomPolicy(StrEnum):
    """Which users may join without ``force``."""

    PUBLIC = "public"
    PRIVATE = "private"
    """Users with one of the room's ``allowed_roles``."""
    INVITE_ONLY = "invite_only"


class RoomRole(IntEnum):
    """What a member may do; a role includes all rights of the roles below it."""

    GUEST = 0
    MEMBER = 1
    MODERATOR = 2
    ADMIN = 3
    OWNER = 4

    @property
    def wire(self) -> str:
        """The role's name on the wire: ``member``."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomOptions:
    """How a room behaves. ``capacity`` counts connections; None is without limit.

    ``auto_cleanup`` is about the list of ``hub.rooms()``: a created room is listed until its
    last member has left, and with ``auto_cleanup=False`` until ``delete_room``. It deletes
    nothing: a room's options, bans, roles, invites and history are kept until
    ``delete_room``; by stores in memory, until the process ends. A room that was made by a
    join, and has none of these, ends with its last member.

    ``allowed_roles`` are for the policy PRIVATE, and a ``ValueError`` under any other.
    ``history_size`` is in messages, ``history_ttl`` in seconds. With ``announce`` the other
    members get the events ``join`` and ``leave`` of ``room:<room>``.
    """

    policy: RoomPolicy
    capacity: int | None
    allowed_roles: frozenset[str]
    auto_cleanup: bool
    history_size: int
    history_ttl: float | None
    announce: bool
    metadata: Mapping[str, Any]

    # Written out, because its arguments are wider than its fields: any iterable of roles, and
    # a timedelta.
    def __init__(
        self,
        *,
        policy: RoomPolicy | str = RoomPolicy.PUBLIC,
        capacity: int | None = None,
        allowed_roles: Iterable[str] = (),
        auto_cleanup: bool = True,
        history_size: int = 0,
        history_ttl: Seconds | None = None,
        announce: bool = False,
        metadata: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        put = object.__setattr__
        put(self, "policy", RoomPolicy(policy))
        put(self, "capacity", None if capacity is None else count(capacity, "capacity"))
        put(self, "allowed_roles", names(allowed_roles, "allowed_roles"))
        if self.allowed_roles and self.policy is not RoomPolicy.PRIVATE:
            raise ValueError(
                f"allowed_roles restrict nobody under the policy {self.policy.value!r}: "
                "take policy=RoomPolicy.PRIVATE, or leave them out"
            )
        put(self, "auto_cleanup", auto_cleanup)
        put(self, "history_size", count(history_size, "history_size", least=0))
        if history_ttl is not None:
            history_ttl = seconds(history_ttl, "history_ttl", positive=True)
        put(self, "history_ttl", history_ttl)
        put(self, "announce", announce)
        put(self, "metadata", MappingProxyType(dict(metadata)))

    def changed(self, changes: Mapping[str, Any]) -> RoomOptions:
        """Return the options with ``changes``; raises ``ValueError`` for an unknown one."""
        unknown = set(changes) - {f.name for f in fields(self)}
        if unknown:
            raise ValueError(f"unknown room options: {', '.join(sorted(unknown))}")
        return replace(self, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """How a connection joins. ``force`` skips the policy, never the capacity or a ban.

    A ``role`` other than MEMBER holds for this connection; with MEMBER a granted role wins.
    ``invited_by`` invites the user with this join, as ``invite`` does before it.
    """

    role: RoomRole = RoomRole.MEMBER
    invited_by: UserId | str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "role", RoomRole(self.role))


class LeaveReason(StrEnum):
    """Why a connection is no longer in a room."""

    LEFT = "left"
    KICKED = "kicked"
    BANNED = "banned"
    DISCONNECTED = "disconnected"
    DELETED = "deleted"


class Ban(Enum):
    """A ban without an end."""

    FOREVER = auto()


@dataclass(slots=True)
class Seat:
    """One connection in a room. ``node`` (with its incarnation) is the one that has it."""

    node: NodeId
    role: RoomRole
    joined_at: datetime


@dataclass(slots=True)
class Standing:
    """What a room knows of one user. Each anonymous connection has a standing of its own."""

    role: RoomRole | None = None
    banned: datetime | Ban | None = None
    invited: bool = False
    invite_until: datetime | None = None
    """The end of the grace period of a used invite after a lost connection; None: no end."""
    seats: dict[ConnId, Seat] = field(default_factory=dict)
    away: dict[ConnId, datetime] = field(default_factory=dict)
    """Lost connections whose leave is not announced yet, each with the end of its grace
    period."""

    @property
    def blank(self) -> bool:
        """Whether nothing in it has to be kept."""
        kept = self.seats or self.away or self.invited or self.banned
        return not kept and self.role is None

    def is_banned(self, now: datetime) -> bool:
        """Whether a ban is in force at ``now``."""
        return self.banned is Ban.FOREVER or (
            isinstance(self.banned, datetime) and now < self.banned
        )

    def is_invited(self, now: datetime) -> bool:
        """Whether an invite is good at ``now``."""
        return self.invited and (self.invite_until is None or now < self.invite_until)

    def copy(self) -> Standing:
        """Return a deep copy."""
        seats = {c: Seat(seat.node, seat.role, seat.joined_at) for c, seat in self.seats.items()}
        return replace(self, seats=seats, away=dict(self.away))

    def leave_for(self, conn_id: ConnId, until: datetime) -> None:
        """Begin the grace period of a lost connection: its leave is not announced if the user
        is back before ``until``."""
        self.away[conn_id] = until

    def is_back(self, now: datetime) -> bool:
        """Whether a connection that joins at ``now`` replaces a lost one in its grace period.

        True ends that grace period: each lost connection is replaced once.
        """
        back = next((conn_id for conn_id, until in self.away.items() if now < until), None)
        if back is None:
            return False
        del self.away[back]
        return True

    def stays_away(self, conn_id: ConnId) -> bool:
        """End the grace period of a lost connection; False if another one has replaced it."""
        return self.away.pop(conn_id, None) is not None

    def highest_role(self) -> RoomRole:
        """Return the highest role of the user's seats; without a seat the granted role."""
        granted = RoomRole.MEMBER if self.role is None else self.role
        return max((seat.role for seat in self.seats.values()), default=granted)


@dataclass(slots=True)
class Room:
    """The state of a room that does not depend on a user."""

    id: RoomId
    options: RoomOptions
    created_at: datetime
    created: bool = False
    """Made by ``create_room``, not by a join."""
    kept: bool = False
    """Got other options, a ban, role or invite, so it outlives its members."""
    visited: bool = False
    """Has had a member."""
    seats: int = 0
    """Connections in the room."""
    switching: tuple[str, datetime] | None = None
    """The exclusive claim to switch the history on or off: its name and its end. The switch
    takes several steps, since the history store changes, too."""

    def claim(self, name: str, *, now: datetime, until: datetime) -> bool:
        """Claim the right to switch the history; False while another claim is in force."""
        if self.switching is not None and now < self.switching[1]:
            return False
        self.switching = name, until
        return True

    def is_claimed_by(self, name: str) -> bool:
        """Whether ``name`` still has the claim to switch the history."""
        return self.switching is not None and self.switching[0] == name

    def let_go(self, name: str) -> None:
        """Release the claim to switch the history."""
        if self.is_claimed_by(name):
            self.switching = None

    @property
    def lasting(self) -> bool:
        """Whether the record stays when the last member has gone."""
        return self.created or self.kept

    @property
    def listed(self) -> bool:
        """Whether ``rooms()`` names it."""
        if self.seats:
            return True
        return self.created and not (self.visited and self.options.auto_cleanup)

    def create(self, options: RoomOptions) -> None:
        """Mark the room as created with ``options``; raises ``RoomExists`` if it has others."""
        if self.created and self.options != options:
            raise RoomExists(f"{self.id} exists with other options")
        self.options = options
        self.created = True

    def change(self, changes: Mapping[str, Any]) -> None:
        """Change some options; raises ``ValueError``. The members stay."""
        self.options = self.options.changed(changes)
        self.kept = True

    def admit(
        self,
        standing: Standing,
        conn_id: ConnId,
        node: NodeId,
        *,
        roles: frozenset[str] = frozenset(),
        options: JoinOptions | None = None,
        now: datetime,
    ) -> Seat:
        """Return a new seat for a connection, or the one that it has already.

        Raises ``JoinForbidden`` (ban, policy) or ``RoomFull``.
        """
        seat = standing.seats.get(conn_id)
        if seat is not None:
            return seat
        asked = options or JoinOptions()
        if standing.is_banned(now):
            raise JoinForbidden(f"banned from {self.id}")
        # Capacity first: a full room must not use up an invitation.
        if self.options.capacity is not None and self.seats >= self.options.capacity:
            raise RoomFull(f"{self.id} holds {self.options.capacity}")
        invited = asked.invited_by is not None or standing.is_invited(now)
        if not asked.force:
            self._check_policy(roles, invited=invited)
        role = asked.role
        if role is RoomRole.MEMBER and standing.role is not None:
            role = standing.role
        seat = standing.seats[conn_id] = Seat(node, role, now)
        # An expired ban or invite must not apply again after this seat.
        standing.banned = None
        standing.invited = invited
        standing.invite_until = None
        self.kept = self.kept or asked.invited_by is not None
        self.seats += 1
        self.visited = True
        return seat

    def _check_policy(self, roles: frozenset[str], *, invited: bool) -> None:
        match self.options.policy:
            case RoomPolicy.PUBLIC:
                return
            case RoomPolicy.PRIVATE:
                if roles.isdisjoint(self.options.allowed_roles):
                    raise JoinForbidden(f"{self.id} is private")
            case RoomPolicy.INVITE_ONLY:
                if not invited:
                    raise JoinForbidden(f"{self.id} is by invitation")

    def release(
        self,
        standing: Standing,
        conn_ids: Iterable[ConnId],
        reason: LeaveReason,
        *,
        now: datetime,
        grace: timedelta = timedelta(0),
    ) -> list[tuple[ConnId, Seat]]:
        """Remove the seats of ``conn_ids``; returns those that existed.

        An invite ends when its user leaves with the last connection; after a lost connection
        it stays good for ``grace``, unless the user is kicked meanwhile.
        """
        gone = [(c, standing.seats.pop(c)) for c in conn_ids if c in standing.seats]
        self.seats -= len(gone)
        if gone and not standing.seats and standing.invited:
            if reason is LeaveReason.DISCONNECTED and grace:
                standing.invite_until = now + grace
            else:
                self.revoke_invite(standing)
        elif reason is LeaveReason.KICKED and standing.invite_until is not None:
            self.revoke_invite(standing)
        return gone

    def withdraw(self, standing: Standing, conn_id: ConnId) -> None:
        """Remove a seat whose join was not completed: an invite stays good."""
        if standing.seats.pop(conn_id, None) is not None:
            self.seats -= 1

    def ban(
        self, standing: Standing, *, now: datetime, duration: timedelta | None
    ) -> list[tuple[ConnId, Seat]]:
        """Remove the user and refuse its joins for ``duration``, None: without end; returns
        the seats that it had."""
        gone = self.release(standing, list(standing.seats), LeaveReason.BANNED, now=now)
        standing.banned = Ban.FOREVER if duration is None else now + duration
        self.revoke_invite(standing)
        self.kept = True
        return gone

    def unban(self, standing: Standing) -> None:
        """End a ban."""
        standing.banned = None

    def invite(self, standing: Standing) -> None:
        """Invite the user, until it has left with its last connection."""
        standing.invited = True
        standing.invite_until = None
        self.kept = True

    def revoke_invite(self, standing: Standing) -> None:
        """End an invite. A member stays in the room."""
        standing.invited = False
        standing.invite_until = None

    def grant(self, standing: Standing, role: RoomRole) -> list[ConnId]:
        """Give the user a role, now and at each later join; returns its connections."""
        standing.role = role
        for seat in standing.seats.values():
            seat.role = role
        self.kept = True
        return list(standing.seats)
