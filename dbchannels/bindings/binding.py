"""Live models: a ``Binding`` sends what happens to the instances of a model to groups, as JSON in text frames::

    class PostBinding(Binding):
        model = Post
        fields = ["id", "title", "price"]

        def groups(self, instance, action):
            return [f"blog-{instance.blog_id}"]

Each member of the group is sent ``{"model": "blog.post", "action": "create", "pk": 7, "data": {"id": 7, ...}}``. What
is sent is what the database holds after the change: it is read back. Sending is an INSERT in the transaction of the
change, so it is seen at commit, and never after a rollback.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections, router
from django.db.models import Model, QuerySet
from django.utils.crypto import salted_hmac

from dbchannels.bindings.receivers import CREATE, DELETE, UPDATE, Audience, Following
from dbchannels.bindings.serializers import Serializer, make_serializer
from dbchannels.channel import Channel, Group
from dbchannels.exceptions import InvalidConfiguration, InvalidMessage

__all__ = ["CREATE", "DELETE", "UPDATE", "Binding"]

_pending: list[type[Binding]] = []


class Binding:
    """Subclass it in a module that the ``ready()`` of the app's AppConfig imports, as one does with signals.

    Give one of ``fields``, ``exclude`` and ``serializer``; the names of m2m fields are for the keys of what is related.
    Raises InvalidConfiguration when it cannot be used, by the time the apps are ready.
    """

    #: The model, or "app.Model". Instances of its proxies and of models that inherit from it are sent too.
    model: ClassVar[type[Model] | str | None] = None
    #: What of an instance is sent: names of fields, or "__all__".
    fields: ClassVar[Sequence[str] | None] = None
    #: All fields but these.
    exclude: ClassVar[Sequence[str] | None] = None
    #: A callable that is given the instance and returns what is sent of it, or an object with that as ``data``.
    serializer: ClassVar[Callable[..., Any] | None] = None
    #: The stream of a demultiplexer: the frame is {"stream": ..., "payload": {...}} then.
    stream: ClassVar[str] = ""
    #: An update may change an instance's groups, or who may see it; False saves reading each row before its change.
    moves: ClassVar[bool] = True
    #: Send what ``loaddata`` loads as well.
    raw: ClassVar[bool] = False
    #: The alias in DBCHANNELS.
    layer: ClassVar[str] = "default"

    _following: ClassVar[Following]
    _serialize: ClassVar[Serializer]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.model is None:  # a base of the site's own
            return
        if apps.models_ready:
            cls.connect()
        else:
            _pending.append(cls)

    # For subclasses.

    def groups(self, instance: Any, action: str) -> Iterable[str]:
        """Return the names of the groups that are told of an instance: of its creation, update or deletion.

        For an update the instance is asked about twice: as it was, with "delete", and as it is, with "update". A group
        that is left is told of a deletion, one that is new of a creation.
        """
        raise NotImplementedError(f"{type(self).__name__} has no groups(self, instance, action): add it.")

    def permitted(self, user: Any, instance: Any, action: str) -> bool:
        """Whether a user (or an AnonymousUser) may be told of an instance; define it, and sockets ``subscribe``.

        Who may no longer see an instance is told of its deletion, with its key and nothing else.
        """
        return True

    # Who is told.

    @classmethod
    def subscribe(cls, group: str, reply_channel: Channel | str, user: Any = None) -> None:
        """Put a socket into a group of this binding, as that of a user; None is an anonymous one.

        Where ``permitted`` is defined no other way into the group leads to instances.
        """
        Group(group, layer=cls.layer).add(reply_channel)
        if cls._asks_permission():
            channel = Channel(str(reply_channel), layer=cls.layer)
            channel.identify(user)
            Group(users_group(group, user_key(user)), layer=cls.layer).add(channel)

    @classmethod
    def unsubscribe(cls, group: str, reply_channel: Channel | str, user: Any = None) -> None:
        """Take a socket out; the user is the one with whom it subscribed."""
        for name in {group, users_group(group, user_key(user))}:
            Group(name, layer=cls.layer).discard(reply_channel)

    @classmethod
    def _asks_permission(cls) -> bool:
        return cls.permitted is not Binding.permitted

    def audience(self, instance: Any, action: str) -> Audience:
        """Return the names of the groups that are sent to: with ``permitted``, those of single users."""
        groups = list(self.groups(instance, action))
        if not self._asks_permission():
            return frozenset(groups)
        return frozenset(
            users_group(group, key)
            for group in groups
            for key, user in present_users(group, self.layer)
            if self.permitted(user, instance, action)
        )

    # What is sent.

    @classmethod
    def message(cls, instance: Any, action: str = UPDATE) -> dict[str, str]:
        """Return what is sent of an instance, for a reply channel: a newcomer is shown what there is already.

        Whom it is for is not known here: ask ``permitted`` yourself.
        """
        data = {} if action == DELETE else cls._serialize(instance)
        return cls.frame(action, cls._pk(instance), data)

    @classmethod
    def frame(cls, action: str, pk: Any, data: Any) -> dict[str, str]:
        """Return the message with a text frame; raises InvalidMessage for what is no JSON."""
        content = {"model": cls._model()._meta.label_lower, "action": action, "pk": pk, "data": data}
        framed = {"stream": cls.stream, "payload": content} if cls.stream else content
        try:
            return {"text": json.dumps(framed, cls=DjangoJSONEncoder, allow_nan=False)}
        except (TypeError, ValueError) as error:
            raise InvalidMessage(
                f"{cls.__name__} cannot send {content['model']} {pk} as JSON ({error}): let its serializer return "
                "text, numbers, lists and dicts."
            ) from error

    def tell(self, pk: Any, instance: Any, before: Audience, after: Audience, changed: bool = True) -> None:
        """Send to those who saw an instance before, and to those who see it after, what it is to them."""
        for action, audience in (
            (DELETE, before - after),
            (CREATE, after - before),
            (UPDATE, before & after if changed else frozenset()),
        ):
            if audience:
                frame = self.frame(action, pk, {}) if action == DELETE else self.message(instance, action)
                for group in sorted(audience):
                    Group(group, layer=self.layer).send(frame)

    # For what sends no signal.

    @classmethod
    def send_created(cls, instances: Iterable[Any]) -> None:
        """Send what ``bulk_create`` has made. The instances are read back; those without a key cannot be."""
        cls._send(instances, CREATE)

    @classmethod
    def send_updated(cls, instances: Iterable[Any]) -> None:
        """Send what ``bulk_update`` has changed, to the groups as they are now; see ``changing``."""
        cls._send(instances, UPDATE)

    @classmethod
    def send_deleted(cls, instances: Iterable[Any]) -> None:
        """Send that these, which still have their keys, are gone; see ``changing``."""
        binding = cls()
        for instance in instances:
            pk = cls._pk(instance)
            if pk is None:
                raise InvalidMessage(
                    f"{cls.__name__} is given an instance without a key: call it before delete()."
                )
            binding.tell(pk, None, binding.audience(instance, DELETE), frozenset())

    @classmethod
    def _send(cls, instances: Iterable[Any], action: str) -> None:
        binding, given = cls(), list(instances)
        keys = [cls._pk(instance) for instance in given]
        if None in keys:
            raise InvalidMessage(
                f"{cls.__name__} is given an instance without a key, as bulk_create leaves it on some databases: query "
                "for what was made."
            )
        stored = cls.rows(given[0]._state.db if given else None).in_bulk(keys)
        for instance in (stored[key] for key in keys if key in stored):
            after = binding.audience(instance, action)
            before = frozenset() if action == CREATE else after
            binding.tell(cls._pk(instance), instance, before, after)

    @classmethod
    @contextmanager
    def changing(cls, queryset: QuerySet[Any]) -> Iterator[None]:
        """Send what the block changes in a query set's rows by ``update``, ``bulk_update`` or SQL, and deletes::

            with transaction.atomic(), PostBinding.changing(Post.objects.filter(draft=True)):
                Post.objects.filter(draft=True).update(draft=False)

        All rows are read before and after. What saves or deletes by signals is sent by these as well: use none inside.
        """
        binding = cls()
        before = {cls._pk(one): binding.audience(one, DELETE) for one in queryset}
        yield
        stored = cls.rows(queryset.db).in_bulk(list(before))
        for pk, audience in before.items():
            instance = stored.get(pk)
            after = frozenset() if instance is None else binding.audience(instance, UPDATE)
            binding.tell(pk, instance, audience, after)

    # The model's rows.

    @classmethod
    def rows(cls, using: str | None = None) -> QuerySet[Any]:
        """Return all rows of the model, whatever its manager hides."""
        model = cls._model()
        rows: QuerySet[Any] = model._base_manager.using(using or router.db_for_write(model))
        return rows

    @classmethod
    def stored(cls, pk: Any, using: str, lock: bool = False) -> Any:
        """Return an instance as the database has it, or None; inside a transaction it can be locked for its change."""
        rows = cls.rows(using)
        if lock and connections[using].in_atomic_block:
            # The lock that an UPDATE takes: one of a DELETE would wait for whoever inserts rows that refer to it.
            no_key = connections[using].features.has_select_for_no_key_update
            rows = rows.select_for_update(no_key=no_key)
        return rows.filter(pk=pk).first()

    @classmethod
    def _pk(cls, instance: Any) -> Any:
        return getattr(instance, cls._model()._meta.pk.attname)

    @classmethod
    def _model(cls) -> type[Model]:
        model = apps.get_model(cls.model) if isinstance(cls.model, str) else cls.model
        if model is None or model._meta.abstract:
            raise InvalidConfiguration(
                f"{cls.__name__} has no model that has rows: give it one that is not abstract."
            )
        return model._meta.concrete_model or model

    @classmethod
    def connect(cls) -> None:
        """Begin to follow the model's signals; a subclass with a model does so by itself."""
        cls._serialize = make_serializer(cls, cls._model())
        cls._following = Following(cls(), cls._model())
        cls._following.connect()

    @classmethod
    def disconnect(cls) -> None:
        """Send nothing any more, until ``connect``: for tests, and while much is loaded."""
        cls._following.disconnect()


def connect_pending() -> None:
    """Connect those that were declared while the models were still loading."""
    while _pending:
        _pending.pop(0).connect()


def present_users(group: str, layer: str) -> list[tuple[str, Any]]:
    """Return the active users whose sockets are in a group, as they are now, by key, and an anonymous one."""
    from django.contrib.auth.models import AnonymousUser

    users = get_user_model()._default_manager
    keys = []
    for key in Group(group, layer=layer).users():
        try:
            keys.append(users.model._meta.pk.to_python(key))
        except ValidationError:  # identified by something else than a user
            continue
    found = users.filter(pk__in=keys) if keys else []
    return [("", AnonymousUser()), *((str(user.pk), user) for user in found if user.is_active)]


def user_key(user: Any) -> str:
    """Return the text of a user's key, "" for an anonymous one."""
    key = getattr(user, "pk", None)
    return "" if key is None else str(key)


def users_group(group: str, key: str) -> str:
    """Return the name of one user's part of a group.

    Nobody can make it of what a client says: a site names groups by captures, and "tea.user-7" would be one.
    """
    digest = salted_hmac("dbchannels.binding_users", f"{group} {key}", algorithm="sha256")
    return f"binding.{digest.hexdigest()}"
