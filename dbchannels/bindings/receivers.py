"""The receivers of a binding: Django's signals of its model, and of all models that share its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.db.models import ManyToManyField, Model
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_delete, pre_save
from django.dispatch import Signal

if TYPE_CHECKING:
    from dbchannels.bindings.binding import Binding

CREATE, UPDATE, DELETE = "create", "update", "delete"

Audience = frozenset[str]  # the names of groups


class Following:
    """One binding's receivers. The audience before a change is kept on the instance until after the change."""

    def __init__(self, binding: Binding, model: type[Model]) -> None:
        self._binding = binding
        self._model = model
        self._name = f"{type(binding).__module__}.{type(binding).__qualname__}"
        self._receivers: list[tuple[Signal, Any, Any]] = []

    def connect(self) -> None:
        """Connect to the model, its proxies, the models that inherit from it, and its m2m fields."""
        senders = [one for one in apps.get_models(include_auto_created=True) if issubclass(one, self._model)]
        self._receivers = [
            *((pre_save, self.saving, sender) for sender in senders),
            *((post_save, self.saved, sender) for sender in senders),
            *((pre_delete, self.deleting, sender) for sender in senders),
            *((post_delete, self.deleted, sender) for sender in senders),
            *(
                (m2m_changed, Related(self, field).changed, field.remote_field.through)
                for field in self._model._meta.many_to_many
            ),
        ]
        for signal, receiver, sender in self._receivers:
            signal.connect(receiver, sender=sender, weak=False)

    def disconnect(self) -> None:
        """Disconnect all receivers."""
        for signal, receiver, sender in self._receivers:
            signal.disconnect(receiver, sender=sender)
        self._receivers = []

    # Saves.

    def saving(self, instance: Any, raw: bool, using: str, **kwargs: Any) -> None:
        """Remember the audience of the row before the save."""
        if self._is_sent(raw):
            # A new instance whose key is made by a default has no row yet.
            is_new = instance._state.adding and instance._meta.pk.has_default()
            looks = self._binding.moves and self.pk(instance) is not None and not is_new
            self.remember(instance, "save", self.audience_of(self.pk(instance), using) if looks else None)

    def saved(self, instance: Any, created: bool, raw: bool, using: str, **kwargs: Any) -> None:
        """Send the row as it is stored."""
        if not self._is_sent(raw):
            return
        before = self.recall(instance, "save")
        stored = self._binding.stored(self.pk(instance), using)
        if stored is None:
            return
        after = self._binding.audience(stored, CREATE if created else UPDATE)
        if before is None:
            before = frozenset() if created else after
        self._binding.tell(self.pk(instance), stored, before, after)

    def _is_sent(self, raw: bool) -> bool:
        return self._binding.raw or not raw

    # Deletions.

    def deleting(self, sender: type[Model], instance: Any, using: str, **kwargs: Any) -> None:
        """Remember the audience of the row. A child row is deleted first, by itself, which does not end this row."""
        if sender._meta.concrete_model is self._model:
            self.remember(instance, "delete", self.audience_of(self.pk(instance), using))

    def deleted(self, sender: type[Model], instance: Any, using: str, **kwargs: Any) -> None:
        """Send that the row is gone."""
        before = self.recall(instance, "delete") if sender._meta.concrete_model is self._model else None
        if before:
            self._binding.tell(self.pk(instance), None, before, frozenset())

    # Shared by saves, deletions and m2m changes.

    def audience_of(self, pk: Any, using: str) -> Audience | None:
        """Return the audience of a row, which is locked in a transaction; None if there is no row."""
        stored = self._binding.stored(pk, using, lock=True)
        return None if stored is None else self._binding.audience(stored, DELETE)

    def send_related(self, pk: Any, using: str, before: Audience, changed: bool) -> None:
        """Send a row whose related rows have changed."""
        stored = self._binding.stored(pk, using)
        if stored is not None:
            self._binding.tell(pk, stored, before, self._binding.audience(stored, UPDATE), changed)

    def is_sent(self, field: ManyToManyField[Any, Any]) -> bool:
        """Whether the field is sent."""
        fields, exclude = self._binding.fields, self._binding.exclude
        if fields is not None:
            return fields == "__all__" or field.name in fields
        return exclude is None or field.name not in exclude

    def pk(self, instance: Any) -> Any:
        """Return an instance's key in the binding's model, also for an instance of a child model."""
        key = getattr(instance, self._model._meta.pk.attname)
        if key is None and (link := instance._meta.get_ancestor_link(self._model)):
            key = getattr(instance, link.attname)  # it links to an existing row
        return key

    def remember(self, instance: Any, what: str, value: Any) -> None:
        """Keep a value on an instance until it is recalled; a receiver may save the instance again meanwhile."""
        kept = vars(instance._state).setdefault("dbchannels", {})
        kept.setdefault((self._name, what), []).append(value)

    def recall(self, instance: Any, what: str) -> Any:
        """Return the last value that was kept, and forget it; None if there is none."""
        kept = vars(instance._state).get("dbchannels", {}).get((self._name, what))
        return kept.pop() if kept else None


class Related:
    """Changes of one m2m field, from either side.

    The other end of a symmetrical relation is not sent: Django writes its row after the last signal.
    """

    def __init__(self, following: Following, field: ManyToManyField[Any, Any]) -> None:
        self._following = following
        self._field = field

    def changed(
        self, instance: Any, action: str, reverse: bool, pk_set: set[Any] | None, using: str, **kwargs: Any
    ) -> None:
        """Remember the audiences of the rows before the change, and send the rows after it."""
        when, _, what = action.partition("_")
        key = f"{self._field.name} {what} {reverse}"
        if when == "pre":
            if not reverse:
                keys = [self._following.pk(instance)]
            elif pk_set is not None:
                keys = sorted(pk_set)
            else:  # all related rows are cleared
                rows = self._field.model._base_manager.using(using).filter(**{self._field.name: instance})
                keys = list(rows.order_by("pk").values_list("pk", flat=True))
            audiences = {pk: self._following.audience_of(pk, using) for pk in keys}
            self._following.remember(instance, key, audiences)
            return
        for pk, before in (self._following.recall(instance, key) or {}).items():
            if before is not None:
                sent = self._following.is_sent(self._field)
                self._following.send_related(pk, using, before, sent)
