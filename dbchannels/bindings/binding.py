"""Live models: a ``Binding`` sends changes of a model's instances to groups, as JSON in text frames::

    class PostBinding(Binding):
        model = Post
        fields = ["id", "title", "price"]

        def groups(self, instance, action):
            return [f"blog-{instance.blog_id}"]

Each member of the group receives ``{"model": "blog.post", "action": "create", "pk": 7, "data": {"id": 7, ...}}``. The
data is read back from the database after the change. Sending is an INSERT in the transaction of the change: it is seen
at commit, and never after a rollback.
"""

from __future__ import annotations

import difflib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections, router
from django.db.models import Field, Model, QuerySet
from django.utils.crypto import salted_hmac
from django.utils.encoding import is_protected_type

from dbchannels.bindings.receivers import CREATE, DELETE, UPDATE, Audience, Following
from dbchannels.channel import Channel, Group
from dbchannels.exceptions import InvalidConfiguration, InvalidMessage, safe_repr

__all__ = ["CREATE", "DELETE", "UPDATE", "Binding"]

Serializer = Callable[[Any], Any]

_pending: list[type[Binding]] = []


class Binding:
    """Sends the changes of a model's instances to groups.

    Subclass it in a module that the ``ready()`` of the app's AppConfig imports, as with signals. Give exactly one of
    ``fields``, ``exclude`` and ``serializer``. An m2m field is sent as the list of related keys. Raises
    InvalidConfiguration, at the latest when the apps are ready.
    """

    #: The model, or "app.Model". Instances of its proxies and child models are sent too.
    model: ClassVar[type[Model] | str | None] = None
    #: The names of the fields to send, or "__all__".
    fields: ClassVar[Sequence[str] | None] = None
    #: The names of the fields not to send.
    exclude: ClassVar[Sequence[str] | None] = None
    #: A callable that takes the instance and returns the data to send, or an object with the attribute ``data``.
    serializer: ClassVar[Callable[..., Any] | None] = None
    #: The stream of a demultiplexer; the frame is then {"stream": ..., "payload": {...}}.
    stream: ClassVar[str] = ""
    #: Whether an update may change an instance's groups or permissions; False saves a query before each change.
    moves: ClassVar[bool] = True
    #: Whether to send rows loaded by ``loaddata``.
    raw: ClassVar[bool] = False
    #: An alias in DBCHANNELS.
    layer: ClassVar[str] = "default"

    _following: ClassVar[Following]
    _serialize: ClassVar[Serializer]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.model is None:  # a base class of the site
            return
        if apps.models_ready:
            cls.connect()
        else:
            _pending.append(cls)

    # For subclasses.

    def groups(self, instance: Any, action: str) -> Iterable[str]:
        """Return the names of the groups that receive an instance's creation, update or deletion.

        An update calls this twice: for the instance before the change, with "delete", and after it, with "update". A
        group in the first result alone receives a deletion, a group in the second alone a creation.
        """
        raise NotImplementedError(f"{type(self).__name__} has no groups(self, instance, action): add it.")

    def permitted(self, user: Any, instance: Any, action: str) -> bool:
        """Whether a user (or an AnonymousUser) may receive an instance. If you define it, sockets must ``subscribe``.

        A user who may no longer see an instance receives its deletion, with the key and nothing else.
        """
        return True

    # Subscribing.

    @classmethod
    def subscribe(cls, group: str, reply_channel: Channel | str, user: Any = None) -> None:
        """Add a user's socket to a group of this binding; None is an anonymous user.

        If ``permitted`` is defined, only sockets added in this way receive instances.
        """
        Group(group, layer=cls.layer).add(reply_channel)
        if cls._asks_permission():
            channel = Channel(str(reply_channel), layer=cls.layer)
            channel.identify(user)
            Group(users_group(group, user_key(user)), layer=cls.layer).add(channel)

    @classmethod
    def unsubscribe(cls, group: str, reply_channel: Channel | str, user: Any = None) -> None:
        """Remove a socket; the user is the one who subscribed."""
        for name in {group, users_group(group, user_key(user))}:
            Group(name, layer=cls.layer).discard(reply_channel)

    @classmethod
    def _asks_permission(cls) -> bool:
        return cls.permitted is not Binding.permitted

    def audience(self, instance: Any, action: str) -> Audience:
        """Return the names of the groups to send to; with ``permitted``, groups of single users."""
        groups = self.groups(instance, action)
        if isinstance(groups, str) or not isinstance(groups, Iterable):
            raise InvalidConfiguration(
                f"{type(self).__name__}.groups returned {safe_repr(groups)}: return a list of names."
            )
        groups = list(groups)
        if not self._asks_permission():
            return frozenset(groups)
        return frozenset(
            users_group(group, key)
            for group in groups
            for key, user in present_users(group, self.layer)
            if self.permitted(user, instance, action)
        )

    # Sending.

    @classmethod
    def message(cls, instance: Any, action: str = UPDATE) -> dict[str, str]:
        """Return the message of an instance, to send existing instances to a new socket's reply channel.

        It does not call ``permitted``: do so yourself.
        """
        data = {} if action == DELETE else cls._serialize(instance)
        return cls.frame(action, cls._pk(instance), data)

    @classmethod
    def frame(cls, action: str, pk: Any, data: Any) -> dict[str, str]:
        """Return the message with a text frame; raises InvalidMessage for data that JSON cannot represent."""
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
        """Send a change to the audiences before and after it: a deletion, a creation or an update."""
        for action, audience in (
            (DELETE, before - after),
            (CREATE, after - before),
            (UPDATE, before & after if changed else frozenset()),
        ):
            if audience:
                frame = self.frame(action, pk, {}) if action == DELETE else self.message(instance, action)
                for group in sorted(audience):
                    Group(group, layer=self.layer).send(frame)

    # For changes that send no signal.

    @classmethod
    def send_created(cls, instances: Iterable[Any]) -> None:
        """Send instances created by ``bulk_create``. They are read back, so each needs its key."""
        cls._send(instances, CREATE)

    @classmethod
    def send_updated(cls, instances: Iterable[Any]) -> None:
        """Send instances changed by ``bulk_update`` to their present groups; see ``changing``."""
        cls._send(instances, UPDATE)

    @classmethod
    def send_deleted(cls, instances: Iterable[Any]) -> None:
        """Send the deletion of instances that still have their keys; see ``changing``."""
        binding = cls()
        for instance in instances:
            pk = cls._pk(instance)
            if pk is None:
                raise InvalidMessage(
                    f"{cls.__name__} was given an instance without a key: call it before delete()."
                )
            binding.tell(pk, None, binding.audience(instance, DELETE), frozenset())

    @classmethod
    def _send(cls, instances: Iterable[Any], action: str) -> None:
        binding, given = cls(), list(instances)
        keys = [cls._pk(instance) for instance in given]
        if None in keys:
            raise InvalidMessage(
                f"{cls.__name__} was given an instance without a key, as bulk_create leaves them on some databases: "
                "query for the new rows."
            )
        stored = cls.rows(given[0]._state.db if given else None).in_bulk(keys)
        for instance in (stored[key] for key in keys if key in stored):
            after = binding.audience(instance, action)
            before = frozenset() if action == CREATE else after
            binding.tell(cls._pk(instance), instance, before, after)

    @classmethod
    @contextmanager
    def changing(cls, queryset: QuerySet[Any]) -> Iterator[None]:
        """Send the changes that the block makes to a query set's rows by ``update``, ``bulk_update`` or SQL::

            with transaction.atomic(), PostBinding.changing(Post.objects.filter(draft=True)):
                Post.objects.filter(draft=True).update(draft=False)

        All rows are read before and after. Deleted rows are sent too. Do not call ``save()`` or ``delete()`` inside:
        their signals would send the change a second time.
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
        """Return all rows of the model, also those that its default manager hides."""
        model = cls._model()
        rows: QuerySet[Any] = model._base_manager.using(using or router.db_for_write(model))
        return rows

    @classmethod
    def stored(cls, pk: Any, using: str, lock: bool = False) -> Any:
        """Return the stored instance, or None; ``lock`` locks its row, inside a transaction."""
        rows = cls.rows(using)
        if lock and connections[using].in_atomic_block:
            # The lock of an UPDATE: the lock of a DELETE would wait for inserts of rows that refer to this row.
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
                f"{cls.__name__}.model has no rows: give it a model that is not abstract."
            )
        return model._meta.concrete_model or model

    @classmethod
    def connect(cls) -> None:
        """Connect to the model's signals; a subclass with a model does so by itself."""
        cls._serialize = make_serializer(cls, cls._model())
        cls._check_groups()
        cls._following = Following(cls(), cls._model())
        cls._following.connect()

    @classmethod
    def _check_groups(cls) -> None:
        """Raise InvalidConfiguration if ``groups`` is missing, or cannot be called."""
        if (cls.groups, cls.audience) == (Binding.groups, Binding.audience):
            raise InvalidConfiguration(f"{cls.__name__} has no groups(self, instance, action): add it.")
        try:
            inspect.signature(cls().groups).bind(None, None)
        except TypeError:
            raise InvalidConfiguration(
                f"{cls.__name__}.groups cannot be called: write def groups(self, instance, action)."
            ) from None

    @classmethod
    def disconnect(cls) -> None:
        """Send nothing until ``connect``: for tests, and for loading much data."""
        cls._following.disconnect()


def connect_pending() -> None:
    """Connect the bindings that were declared while the models were loading."""
    while _pending:
        _pending.pop(0).connect()


def present_users(group: str, layer: str) -> list[tuple[str, Any]]:
    """Return the active users whose sockets are in a group, each with its key, and an AnonymousUser."""
    from django.contrib.auth.models import AnonymousUser

    users = get_user_model()._default_manager
    keys = []
    for key in Group(group, layer=layer).users():
        try:
            keys.append(users.model._meta.pk.to_python(key))
        except ValidationError:  # identified by another key than a user's
            continue
    found = users.filter(pk__in=keys) if keys else []
    return [("", AnonymousUser()), *((str(user.pk), user) for user in found if user.is_active)]


def user_key(user: Any) -> str:
    """Return the text of a user's key; "" for an anonymous user."""
    key = getattr(user, "pk", None)
    return "" if key is None else str(key)


def users_group(group: str, key: str) -> str:
    """Return the name of the group of one user's sockets in a group.

    It is a digest, so that no client can choose it: a site may make group names of captures, such as "tea.user-7".
    """
    digest = salted_hmac("dbchannels.binding_users", f"{group} {key}", algorithm="sha256")
    return f"binding.{digest.hexdigest()}"


def make_serializer(binding: type, model: type[Model]) -> Serializer:
    """Return a function that makes the data of an instance; raises InvalidConfiguration."""
    given = [name for name in ("fields", "exclude", "serializer") if getattr(binding, name) is not None]
    if len(given) != 1:
        raise InvalidConfiguration(
            f"{binding.__name__} has {' and '.join(given) or 'none'} of fields, exclude and serializer: give exactly "
            "one, so that nothing is sent by mistake; fields = '__all__' sends all fields."
        )
    if given == ["serializer"]:
        own = inspect.getattr_static(binding, "serializer")
        own = own.__func__ if isinstance(own, staticmethod) else own
        # A plain function is a method only if its first parameter is ``self``.
        if inspect.isfunction(own) and next(iter(inspect.signature(own).parameters), "") == "self":
            own = getattr(binding(), "serializer")  # noqa: B009
        return lambda instance: getattr(made := own(instance), "data", made)
    key, names = given[0], getattr(binding, given[0])
    fields: dict[str, Any] = {
        field.name: field for field in (*model._meta.concrete_fields, *model._meta.many_to_many)
    }
    if isinstance(names, str) and names != "__all__":
        raise InvalidConfiguration(
            f"{binding.__name__}.{key} must be a list of names, not a str: write [{names!r}]."
        )
    for name in names if names != "__all__" else ():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise InvalidConfiguration(
                f"{binding.__name__}.{key} names {name!r}, which is not a field of {model._meta.label}: "
                + (f"write {near[0]!r}." if near else f"it has {', '.join(fields)}.")
            )
    if key == "exclude":
        chosen = [field for name, field in fields.items() if name not in names]
    else:
        chosen = [fields[name] for name in (fields if names == "__all__" else names)]
    return lambda instance: {field.name: field_value(field, instance) for field in chosen}


def field_value(field: Field[Any, Any], instance: Any) -> Any:
    """Return a field's value for JSON, as Django's serializers make it; lists and dicts stay as they are."""
    if field.many_to_many:
        related = getattr(instance, field.name).order_by("pk")
        return list(related.values_list("pk", flat=True))
    value = field.value_from_object(instance)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no infinity and no NaN
    if is_protected_type(value) or isinstance(value, (str, list, tuple, dict)):
        return value
    return field.value_to_string(instance)
