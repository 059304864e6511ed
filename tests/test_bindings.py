"""Live models: what happens to instances is sent to those who may know of it, and to nobody else."""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest
from django.apps import apps
from django.contrib.auth.models import AbstractUser, AnonymousUser, User
from django.core import serializers
from django.db import connections, transaction
from django.db.models import F
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_delete, pre_save
from django.test.utils import CaptureQueriesContext

from dbchannels import Binding, Channel, Group, consumer
from dbchannels.bindings import binding
from dbchannels.bindings.binding import users_group
from dbchannels.exceptions import InvalidConfiguration, InvalidMessage, MessageTooLarge
from dbchannels.layers.operations import Connect, Disconnect
from dbchannels.routing import table
from dbchannels.testing import ChannelTestCase
from dbchannels.testing.contract.case import in_thread, raises
from tests import kinds
from tests.blog.models import Draft, Photo, Post, Review, Tag

on_both = kinds.only("postgresql", "sqlite")
on_default = kinds.only("postgresql", "memory")
SIGNALS = (pre_save, post_save, pre_delete, post_delete, m2m_changed)


@pytest.fixture
def bind():
    """Declare bindings for this test: ``bind(fields=["title"], ...)``; by default they go by the field ``blog``."""
    before = [len(signal.receivers) for signal in SIGNALS]
    made = []

    def declare(model=Post, groups=lambda self, instance, action: [instance.blog], **attributes):
        if not {"fields", "exclude", "serializer"} & set(attributes):
            attributes["fields"] = ["title"]
        made.append(type("PostBinding", (Binding,), {"model": model, "groups": groups, **attributes}))
        return made[-1]

    yield declare
    for one in made:
        one.disconnect()
    assert [len(signal.receivers) for signal in SIGNALS] == before


@pytest.fixture
def site(layer):
    """A site with sockets in the groups "tea" and "milk", whose rows are on the layer's database."""
    return Site(layer)


class Site:
    """What a test does, and what its sockets get."""

    def __init__(self, layer):
        self.layer = layer
        self.database = layer.database if layer.transactional else "default"
        for group in ("tea", "milk"):
            Group(group).add(f"reply.b!{group}")

    def save(self, model=Post, **fields):
        """Save a new instance, and forget what was sent of it."""
        made = model(**fields)
        made.save(using=self.database)
        self.sent()
        return made

    def rows(self, model=Post):
        """Return the query set of the layer's database."""
        return model.objects.using(self.database)

    def frames(self):
        """Return (socket, frame) of what was sent since the last call."""
        found = []
        while (received := self.layer.receive(["reply.b!"]))[0] is not None:
            found.append((received[0].partition("!")[2], json.loads(received[1]["text"])))
        return found

    def sent(self):
        """Return (socket, action, pk, data)."""
        return [(socket, one["action"], one["pk"], one["data"]) for socket, one in self.frames()]


# Created, updated, deleted.


@on_both
def test_what_happens_to_an_instance_is_sent(site, bind):
    bind(fields=["id", "title"])
    post = Post(title="a")
    post.save(using=site.database)
    pk = post.pk
    assert site.frames() == [
        ("tea", {"model": "blog.post", "action": "create", "pk": pk, "data": {"id": pk, "title": "a"}})
    ]
    post.title = "b"
    post.save()
    assert site.sent() == [("tea", "update", pk, {"id": pk, "title": "b"})]
    post.delete()
    assert site.sent() == [("tea", "delete", pk, {})]


@on_both
def test_it_is_sent_at_commit_and_never_after_a_rollback(site, bind):
    bind()
    with transaction.atomic(using=site.database):
        Post(title="a").save(using=site.database)
        if site.database == "default":
            assert site.sent() == []
    assert [one[:2] for one in site.sent()] == [("tea", "create")]
    with pytest.raises(RuntimeError), transaction.atomic(using=site.database):
        Post(title="b").save(using=site.database)
        site.rows().get(title="a").delete()
        raise RuntimeError
    assert site.sent() == []


@on_both
def test_an_instance_that_moves_is_deleted_here_and_created_there(site, bind):
    bind()
    post = site.save(title="a")
    post.blog, post.title = "milk", "b"
    post.save()
    assert site.sent() == [("tea", "delete", post.pk, {}), ("milk", "create", post.pk, {"title": "b"})]
    post.blog = "nowhere"
    post.save()
    assert site.sent() == [("milk", "delete", post.pk, {})]


@on_both
def test_it_is_the_stored_row_that_is_deleted_not_what_the_instance_holds(site, bind):
    bind()
    post = site.save(title="a")
    pk = post.pk
    site.rows().update(blog="milk")
    post.delete()
    assert site.sent() == [("milk", "delete", pk, {})]


@on_both
def test_several_groups_are_told_each_what_it_is_to_them(site, bind):
    bind(groups=lambda self, instance, action: instance.blog.split())
    post = site.save(blog="tea")
    post.blog = "tea milk"
    post.save()
    assert [one[:2] for one in site.sent()] == [("milk", "create"), ("tea", "update")]
    post.delete()
    assert sorted(one[:2] for one in site.sent()) == [("milk", "delete"), ("tea", "delete")]


@on_both
def test_groups_are_asked_with_what_they_would_be_told(site, bind):
    asked = []

    def groups(self, instance, action):
        asked.append((action, instance.title))
        return []

    bind(groups=groups)
    post = site.save(title="a")
    post.title = "b"
    post.save()
    post.delete()
    assert asked == [("create", "a"), ("delete", "a"), ("update", "b"), ("delete", "b")]


@on_both
def test_without_moves_no_row_is_read_before_its_change(site, bind):
    binding = bind()
    post = site.save()

    def queries():
        with CaptureQueriesContext(connections[site.database]) as captured:
            post.save()
        return sum(query["sql"].startswith("SELECT") and "blog_post" in query["sql"] for query in captured)

    assert queries() == 2
    site.sent()
    binding.moves = False
    assert queries() == 1
    assert [one[1] for one in site.sent()] == ["update"]


# What is sent.


@on_both
def test_values_that_json_does_not_have_are_written_out(site, bind):
    bind(fields="__all__")
    tag = site.save(Tag, name="x")
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    post = Post(
        title="ü",
        price="1.5",
        published=moment,
        took=timedelta(minutes=1),
        extra={"a": [1, None]},
        raw=b"\xff\0",
    )
    post.save(using=site.database)
    site.sent()
    post.tags.add(tag)
    ((_, _, pk, data),) = site.sent()
    assert data == {
        "id": pk,
        "title": "ü",
        "blog": "tea",
        "secret": "",
        "public": True,
        "author": None,
        "reads": 0,
        "score": 0.0,
        "price": "1.50",
        "published": "2026-01-02T03:04:05Z",
        "took": "00:01:00",
        "extra": {"a": [1, None]},
        "raw": "/wA=",
        "tags": [tag.pk],
        "friends": [],
    }


@kinds.only("postgresql")
def test_a_number_that_json_has_no_word_for_is_null(site, bind):
    bind(fields=["score"])
    Post(score=float("nan")).save(using=site.database)
    assert site.sent()[0][3] == {"score": None}


@on_both
def test_foreign_keys_files_and_uuids(site, bind):
    bind(Photo, groups=lambda self, instance, action: ["tea"], fields=["id", "post", "file"])
    post = site.save()
    photo = Photo(post=post, file="a/b.png")
    photo.save(using=site.database)
    assert site.sent() == [
        ("tea", "create", str(photo.pk), {"id": str(photo.pk), "post": post.pk, "file": "a/b.png"})
    ]


@on_both
def test_all_but_what_is_excluded(site, bind):
    bind(exclude=["secret", "extra", "raw", "tags", "friends", "published", "took"])
    Post(title="a", secret="x").save(using=site.database)
    assert set(site.sent()[0][3]) == {"id", "title", "blog", "public", "author", "reads", "score", "price"}


class RestSerializer:
    """As those of other packages: called with the instance, it has ``data``."""

    def __init__(self, instance):
        self.data = {"shouted": instance.title.upper()}


@on_both
@pytest.mark.parametrize(
    "serializer",
    [
        lambda instance: {"shouted": instance.title.upper()},
        staticmethod(lambda instance: {"shouted": instance.title.upper()}),
        lambda self, instance: {"shouted": instance.title.upper()},
        RestSerializer,
    ],
)
def test_a_serializer_of_the_sites_own(site, bind, serializer):
    bind(serializer=serializer)
    Post(title="a").save(using=site.database)
    assert site.sent()[0][3] == {"shouted": "A"}


@on_both
def test_what_is_stored_is_sent_not_what_the_instance_holds(site, bind):
    bind(fields=["title", "secret", "reads", "blog"])
    post = site.save(title="a")
    post.title, post.secret, post.blog, post.reads = "b", "unsaved", "milk", F("reads") + 1
    post.save(update_fields=["title", "reads"])
    assert site.sent() == [
        ("tea", "update", post.pk, {"title": "b", "secret": "", "reads": 1, "blog": "tea"})
    ]


@on_both
def test_frames_for_a_demultiplexer_name_their_stream(site, bind):
    bind(stream="posts")
    Post(title="a").save(using=site.database)
    ((_, frame),) = site.frames()
    assert (frame["stream"], frame["payload"]["action"], set(frame)) == (
        "posts",
        "create",
        {"stream", "payload"},
    )


@on_both
def test_a_newcomer_is_shown_what_there_is(site, bind):
    binding = bind()
    post = site.save(title="a")
    for action, data in (("create", {"title": "a"}), ("update", {"title": "a"}), ("delete", {})):
        shown = json.loads(binding.message(post, action)["text"])
        assert shown == {"model": "blog.post", "action": action, "pk": post.pk, "data": data}


@on_both
@pytest.mark.parametrize("made", [lambda instance: {"a": object()}, lambda instance: {"a": float("inf")}])
def test_what_is_no_json_is_one_sentence_and_saves_nothing(site, bind, made):
    bind(serializer=made)
    with raises(InvalidMessage) as refused, transaction.atomic(using=site.database):
        Post(title="a").save(using=site.database)
    assert "PostBinding cannot send blog.post" in refused.sentence
    assert not site.rows().exists()


@kinds.on_databases
def test_what_is_too_large_is_refused_with_the_save(new_layer, bind):
    site = Site(new_layer(max_message_size=200))
    bind(serializer=lambda instance: {"text": "x" * 200})  # and the JSON around it
    with pytest.raises(MessageTooLarge), transaction.atomic(using=site.database):
        Post().save(using=site.database)
    assert not site.rows().exists()


# Related rows.


@on_both
def test_m2m_changes_from_either_side(site, bind):
    bind(fields=["tags"])
    one, two = site.save(Tag), site.save(Tag)
    post, other = site.save(), site.save(blog="milk")
    post.tags.set([one, two])
    assert site.sent() == [("tea", "update", post.pk, {"tags": [one.pk, two.pk]})]
    one.posts.add(other)
    assert site.sent() == [("milk", "update", other.pk, {"tags": [one.pk]})]
    two.posts.remove(post)
    assert site.sent() == [("tea", "update", post.pk, {"tags": [one.pk]})]
    one.posts.clear()
    assert site.sent() == [
        ("tea", "update", post.pk, {"tags": []}),
        ("milk", "update", other.pk, {"tags": []}),
    ]
    post.tags.clear()
    assert site.sent() == [("tea", "update", post.pk, {"tags": []})]


@on_both
def test_m2m_changes_move_an_instance_and_are_silent_where_nothing_changes(site, bind):
    bind(groups=lambda self, instance, action: [tag.name for tag in instance.tags.all()])
    tea, milk = site.save(Tag, name="tea"), site.save(Tag, name="milk")
    post = site.save(title="a")
    post.tags.add(tea)
    assert site.sent() == [("tea", "create", post.pk, {"title": "a"})]
    post.tags.add(milk)
    assert site.sent() == [("milk", "create", post.pk, {"title": "a"})]
    post.tags.remove(tea)
    assert site.sent() == [("tea", "delete", post.pk, {})]
    milk.posts.clear()
    assert site.sent() == [("milk", "delete", post.pk, {})]


# Inheritance.


@on_both
def test_proxies_are_the_same_rows(site, bind):
    bind()
    draft = Draft(title="a")
    draft.save(using=site.database)
    draft.save()
    pk = draft.pk
    draft.delete()
    assert [one[1:3] for one in site.sent()] == [("create", pk), ("update", pk), ("delete", pk)]
    bind(Draft, stream="drafts")
    Post().save(using=site.database)
    assert [frame["payload"]["model"] for _, frame in site.frames() if "stream" in frame] == ["blog.post"]


@on_both
def test_models_that_inherit_are_instances_too(site, bind):
    bind()
    review = Review(title="a", stars=5)
    review.save(using=site.database)
    review.title = "b"
    review.save()
    pk = review.pk
    review.delete(keep_parents=True)
    assert site.sent() == [("tea", "create", pk, {"title": "a"}), ("tea", "update", pk, {"title": "b"})]
    Review(post_ptr_id=pk, **{"title": "c", "blog": "tea"}).save(using=site.database)
    assert site.sent() == [("tea", "update", pk, {"title": "c"})]  # the post was there
    site.rows(Review).get().delete()
    assert site.sent() == [("tea", "delete", pk, {})]


@on_both
def test_a_model_that_inherits_can_be_bound_itself(site, bind):
    bind(Review, fields=["title", "stars"])
    site.save(Post)
    review = Review(title="a", stars=5)
    review.save(using=site.database)
    pk = review.pk
    site.rows().get(pk=pk).delete()
    assert site.sent() == [("tea", "create", pk, {"title": "a", "stars": 5}), ("tea", "delete", pk, {})]


# Rows that others delete or load.


@on_both
def test_a_cascade_and_a_query_sets_delete_send_each(site, bind):
    bind(Photo, groups=lambda self, instance, action: [instance.post.blog], fields=["id"])
    post = site.save()
    photos = [site.save(Photo, post=post) for _ in range(2)]
    post.delete()
    assert sorted(one[1:3] for one in site.sent()) == sorted(("delete", str(photo.pk)) for photo in photos)


@on_both
def test_what_was_gone_already_is_not_deleted_twice(site, bind):
    bind()
    post = site.save()
    site.rows().filter(pk=post.pk)._raw_delete(site.database)
    post.delete()
    assert site.sent() == []


@on_both
@pytest.mark.parametrize(("raw", "sent"), [(False, 0), (True, 1)])
def test_loaddata_is_sent_only_when_asked_for(site, bind, raw, sent):
    bind(raw=raw)
    text = serializers.serialize("json", [Post(pk=7, title="a")])
    for loaded in serializers.deserialize("json", text, using=site.database):
        loaded.save(using=site.database)
    assert len(site.sent()) == sent


@on_both
def test_a_save_that_fails_leaves_nothing_behind(site, bind):
    bind()
    post = site.save()
    post.blog, post.title = "milk", None
    with pytest.raises(Exception, match=r"(?i)null"), transaction.atomic(using=site.database):
        post.save()
    post.title = "b"
    post.save()
    assert [one[:2] for one in site.sent()] == [("tea", "delete"), ("milk", "create")]


@on_both
def test_a_receiver_that_saves_again_loses_no_move(site, bind):
    saved = []

    def again(instance, **kwargs):
        if not saved:
            saved.append(1)
            instance.save()

    post = site.save()
    post_save.connect(again, sender=Post)
    try:
        bind()  # after the receiver, so that the inner save is told of first
        post.blog = "milk"
        post.save()
    finally:
        post_save.disconnect(again, sender=Post)
    assert [one[:2] for one in site.sent()] == [("milk", "update"), ("tea", "delete"), ("milk", "create")]


@kinds.only("postgresql")
def test_two_moves_at_once_leave_nobody_with_what_has_gone(site, bind):
    bind()
    post = site.save(blog="tea")
    other = site.rows().get()
    with transaction.atomic():
        post.blog = "milk"
        post.save()
        other.blog = "nowhere"
        thread = in_thread(site.layer, lambda: transaction.atomic(other.save)())
    thread.join(20)
    assert [one[:2] for one in site.sent()] == [("tea", "delete"), ("milk", "create"), ("milk", "delete")]


@kinds.only("postgresql")
def test_a_save_does_not_wait_for_rows_that_are_made_to_refer_to_it(site, bind):
    bind()
    post, done = site.save(), []
    with transaction.atomic():
        with connections["default"].cursor() as cursor:
            cursor.execute(
                "SET CONSTRAINTS ALL IMMEDIATE"
            )  # so that the reference is looked for now, and locks
        Photo.objects.create(post=post)
        post.title = "b"

        def save():
            transaction.atomic(post.save)()
            done.append(True)

        in_thread(site.layer, save).join(20)
        assert done
    assert [one[1] for one in site.sent()] == ["update"]


# Bulk operations.


@on_both
def test_bulk_operations_send_nothing_by_themselves(site, bind):
    binding = bind()
    posts = site.rows().bulk_create([Post(title="a"), Post(title="b", blog="milk")])
    site.rows().update(title="c")
    assert site.sent() == []
    binding.send_created(posts)
    keys = [post.pk for post in posts]
    assert site.sent() == [
        ("tea", "create", keys[0], {"title": "c"}),
        ("milk", "create", keys[1], {"title": "c"}),
    ]
    binding.send_updated(site.rows().order_by("pk"))
    assert [one[1] for one in site.sent()] == ["update", "update"]
    binding.send_deleted(posts)
    assert site.sent() == [("tea", "delete", keys[0], {}), ("milk", "delete", keys[1], {})]
    binding.send_created([])
    assert site.sent() == []


@on_both
def test_changing_looks_before_and_after(site, bind):
    binding = bind()
    kept, moved, gone = (site.save(title=title) for title in "abc")
    pk = gone.pk
    with binding.changing(site.rows().order_by("pk")):
        site.rows().filter(pk=kept.pk).update(title="d")
        site.rows().filter(pk=moved.pk).update(blog="milk")
        site.rows().filter(pk=gone.pk)._raw_delete(site.database)
    assert site.sent() == [
        ("tea", "update", kept.pk, {"title": "d"}),
        ("tea", "delete", moved.pk, {}),
        ("milk", "create", moved.pk, {"title": "b"}),
        ("tea", "delete", pk, {}),
    ]
    with pytest.raises(RuntimeError), binding.changing(site.rows()):
        raise RuntimeError
    assert site.sent() == []


@on_both
def test_instances_without_a_key_are_one_sentence(site, bind):
    binding = bind()
    for send in (binding.send_created, binding.send_updated, binding.send_deleted):
        with raises(InvalidMessage) as refused:
            send([Post()])
        assert "PostBinding was given an instance without a key" in refused.sentence


# Who may know.


@pytest.fixture
def crowd(site, new_link):
    """Sockets of users: ``crowd.enter(binding, "ann")``; ``None`` is an anonymous one."""
    users = {name: User.objects.create(username=name) for name in ("ann", "bob")}
    link = new_link(site.layer)
    entered = []

    class Crowd:
        ann, bob = users["ann"], users["bob"]

        def enter(self, binding, *names, group="tea"):
            for name in names:
                channel = f"reply.b!{name}"
                if channel not in entered:
                    link.apply([Connect(channel, "server", "/")])
                    entered.append(channel)
                binding.subscribe(group, channel, users.get(name, AnonymousUser()))

        def leave(self, binding, name, group="tea"):
            binding.unsubscribe(group, f"reply.b!{name}", users.get(name))

    Group("tea").clear()
    yield Crowd()
    link.apply([Disconnect(channel) for channel in entered])


def secret_of(self, user, instance, action):
    """Only the one who is named may know of an instance that names somebody."""
    return instance.secret in ("", user.username)


@on_default
def test_only_those_who_may_are_told(site, bind, crowd):
    crowd.enter(bind(permitted=secret_of), "ann", "bob", "nobody")
    open_, hidden = Post(title="a"), Post(title="b", secret="bob")
    open_.save()
    assert sorted(one[:2] for one in site.sent()) == [(name, "create") for name in ("ann", "bob", "nobody")]
    hidden.save()
    assert [one[:2] for one in site.sent()] == [("bob", "create")]
    hidden.delete()
    assert [one[:2] for one in site.sent()] == [("bob", "delete")]


@on_default
def test_who_may_no_longer_is_told_of_a_deletion_and_of_nothing_else(site, bind, crowd):
    crowd.enter(bind(permitted=secret_of), "ann", "bob")
    post = site.save(title="a")
    post.secret, post.title = "ann", "b"
    post.save()
    assert sorted(site.sent()) == [("ann", "update", post.pk, {"title": "b"}), ("bob", "delete", post.pk, {})]
    post.secret = "bob"
    post.save()
    assert sorted(one[:2] for one in site.sent()) == [("ann", "delete"), ("bob", "create")]


@on_default
def test_a_socket_that_was_only_added_to_the_group_is_told_nothing(site, bind, crowd):
    bind(permitted=lambda *args: True)
    Group("tea").add("reply.b!sly")
    Post().save()
    assert site.sent() == []


@on_default
def test_permissions_are_those_of_the_user_as_it_is_now(site, bind, crowd):
    crowd.enter(bind(permitted=lambda self, user, instance, action: user.is_staff), "ann", "bob")
    site.save()
    User.objects.filter(username="ann").update(is_staff=True)
    Post().save()
    assert [one[0] for one in site.sent()] == ["ann"]
    User.objects.filter(username="ann").update(is_active=False)
    Post().save()
    assert site.sent() == []


@on_default
def test_a_socket_that_is_now_another_users_is_told_nothing_of_the_firsts(site, bind, crowd):
    binding = bind(permitted=secret_of)
    crowd.enter(binding, "ann")
    Channel("reply.b!ann").identify(crowd.bob)
    Post(secret="ann").save()
    assert site.sent() == []


@on_default
def test_who_unsubscribes_is_told_nothing_any_more(site, bind, crowd):
    binding = bind(permitted=secret_of)
    crowd.enter(binding, "ann", "bob", "nobody")
    for name in ("ann", "nobody"):
        crowd.leave(binding, name)
    Post().save()
    assert [one[0] for one in site.sent()] == ["bob"]


@on_default
def test_without_permissions_to_subscribe_is_to_be_added(site, bind):
    binding = bind()
    binding.subscribe("tea", "reply.b!c")
    Post().save()
    assert sorted(one[0] for one in site.sent()) == ["c", "tea"]
    binding.unsubscribe("tea", "reply.b!c")
    Post().save()
    assert [one[0] for one in site.sent()] == ["tea"]


@on_default
def test_an_identity_that_is_no_users_key_is_nobodys(site, bind, crowd):
    binding = bind(permitted=lambda *args: True)
    crowd.enter(binding, "ann")
    site.layer.identify("reply.b!ann", "not a key")
    Post().save()
    assert site.sent() == []


@pytest.mark.parametrize("key", ["7", str(uuid.UUID(int=7)), "ann@example.com", "x" * 99, "ü", ""])
@pytest.mark.parametrize("group", ["tea", "g" * 100])
def test_each_user_has_one_name_in_a_group(group, key):
    name = users_group(group, key)
    others = {users_group(group, other) for other in ("8", key + "x", "y")}
    others.add(users_group("milk", key))
    assert Group(name).name == name and name not in others


@on_default
def test_a_group_that_a_client_names_is_no_other_users_part(site, bind, crowd):
    """A room of a ``<str:room>``: the names of parts are no names of groups with something behind."""
    crowd.enter(bind(permitted=secret_of), "ann")
    for name in (f"tea.user-{crowd.ann.pk}", "tea.anonymous"):
        Group(name).add("reply.b!sly")
    Post(secret="ann").save()
    assert [one[0] for one in site.sent()] == ["ann"]


def test_the_names_of_parts_need_the_sites_secret(settings):
    before = users_group("tea", "7")
    settings.SECRET_KEY = "another one"
    assert users_group("tea", "7") != before


# In a site's own tests.


class LiveModelsInTests(ChannelTestCase):
    """A binding tells the sockets of the test client, by their users, inside the transaction of a TestCase."""

    def setUp(self):
        decorated, table._decorated[:] = list(table._decorated), []
        self.addCleanup(table._decorated.__setitem__, slice(None), decorated)

        class StaffBinding(Binding):
            model = Post
            fields = ("title",)

            def groups(self, instance, action):
                return ["blog"]

            def permitted(self, user, instance, action):
                return instance.public or user.is_staff

        self.addCleanup(StaffBinding.disconnect)

        @consumer("websocket.connect", path="/blog/<int:pk>/")
        def join(message, pk):
            StaffBinding.subscribe("blog", message.reply_channel, User.objects.get(pk=pk))

        users = [User.objects.create(username=name, is_staff=name == "bob") for name in ("ann", "bob")]
        self.ann, self.bob = (self.client.ws(f"/blog/{user.pk}/") for user in users)

    def actions(self):
        """Return what each socket was told."""
        return [[frame["action"] for frame in one.receive_all_json()] for one in (self.ann, self.bob)]

    def test_sockets_are_told_what_their_users_may_know(self):
        post = Post.objects.create(title="a")
        assert self.actions() == [["create"], ["create"]]
        post.public = False
        post.save()
        assert self.actions() == [["delete"], ["update"]]

    def test_nothing_is_told_of_what_is_rolled_back(self):
        with pytest.raises(RuntimeError), transaction.atomic():
            Post.objects.create(title="a")
            raise RuntimeError
        assert self.actions() == [[], []]


# Declarations.


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"fields": None}, "has none of fields, exclude and serializer: give exactly one"),
        ({"fields": ["id"], "exclude": ["id"]}, "has fields and exclude of fields, exclude and serializer"),
        ({"fields": ["titel"]}, "names 'titel', which is not a field of blog.Post: write 'title'."),
        ({"exclude": ["zzz"]}, "names 'zzz', which is not a field of blog.Post: it has id, title, blog, "),
        ({"fields": "title"}, "must be a list of names, not a str: write ['title']."),
        ({"fields": ["title"]}, "has no groups(self, instance, action): add it."),
        ({"fields": ["title"], "groups": ["tea"]}, "write def groups(self, instance, action)."),
        (
            {"fields": ["title"], "groups": lambda self, instance: []},
            "write def groups(self, instance, action).",
        ),
    ],
)
def test_what_cannot_be_sent_is_one_sentence(attributes, said):
    with raises(InvalidConfiguration) as refused:
        type("PostBinding", (Binding,), {"model": Post, **attributes})
    assert said in refused.sentence


def test_a_model_has_rows():
    with raises(InvalidConfiguration) as refused:
        type("UserBinding", (Binding,), {"model": AbstractUser, "fields": "__all__"})
    assert "UserBinding.model has no rows" in refused.sentence


@on_both
def test_a_model_by_its_name(site, bind):
    bind("blog.Post")
    Post(title="a").save(using=site.database)
    assert len(site.sent()) == 1


@on_both
def test_a_base_without_a_model_follows_nothing_and_is_inherited_from(site, bind):
    base = type("Base", (Binding,), {"groups": lambda self, instance, action: ["tea"], "fields": ["title"]})
    Post().save(using=site.database)
    assert site.sent() == []
    made = type("PostBinding", (base,), {"model": Post})
    Post().save(using=site.database)
    assert len(site.sent()) == 1
    made.disconnect()
    Post().save(using=site.database)
    assert site.sent() == []


@on_both
def test_one_that_is_declared_before_the_models_are_ready_is_connected_then(site, bind, monkeypatch):
    monkeypatch.setattr(binding, "_pending", [])
    monkeypatch.setattr(apps, "models_ready", False)
    early = bind("blog.Post")
    monkeypatch.undo()
    early._following = binding.Following(early(), Post)  # nothing to disconnect yet
    Post().save(using=site.database)
    assert site.sent() == []
    binding._pending.append(early)
    binding.connect_pending()
    Post().save(using=site.database)
    assert len(site.sent()) == 1 and binding._pending == []


@pytest.mark.parametrize(
    "groups",
    [classmethod(lambda cls, instance, action: [action]), staticmethod(lambda instance, action: [action])],
)
def test_groups_may_be_a_method_of_any_kind(bind, groups):
    assert bind(groups=groups)().audience(None, "create") == {"create"}


def test_groups_must_be_said():
    with pytest.raises(
        NotImplementedError, match=r"Binding has no groups\(self, instance, action\): add it\."
    ):
        Binding().groups(None, "create")


@pytest.mark.parametrize("given", ["tea", None, 7])
def test_groups_are_a_list(given):
    of = type("Of", (Binding,), {"groups": lambda self, instance, action: given})
    with raises(InvalidConfiguration) as refused:
        of().audience(None, "create")
    assert refused.sentence == f"Of.groups returned {given!r}: return a list of names."


@on_both
def test_money_keeps_its_digits(site, bind):
    bind(fields=["price"])
    Post(price=Decimal("10.10")).save(using=site.database)
    assert site.sent()[0][3] == {"price": "10.10"}
