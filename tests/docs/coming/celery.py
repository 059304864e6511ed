"""What the project of docs/celery.rst does."""

# ruff: noqa: PT009 (it is run by a TestCase of Django)

from contextlib import redirect_stdout
from datetime import timedelta
from io import StringIO
from unittest import mock

from django.core import mail
from django.utils import timezone
from shop import consumers
from shop.models import Account, Album, Export, Letter, Report

from dbchannels import Channel, channel_layers
from dbchannels.routing.table import site_routing
from dbchannels.testing import ChannelTestCase


def broken():
    """Return a supplier that cannot be reached."""
    return mock.Mock(side_effect=consumers.ShopIsAway("closed"))


def options(channel):
    """Return the options of the consumer of a channel."""
    (route,) = [one for one in site_routing().routes() if one.channel == channel]
    return route.options


class PageTest(ChannelTestCase):
    def drained(self, **keywords):
        """Run the consumers of what waits; return what they printed, by line."""
        with redirect_stdout(StringIO()) as printed:
            self.drain(**keywords)
        return printed.getvalue().splitlines()

    def dead_letters(self):
        return len(channel_layers["default"].dead_letter_ids())

    def test_an_order_has_its_invoice(self):
        self.client.get("/order/")
        self.assertEqual(self.drained(), ["an invoice for order 7"])

    def test_the_options_of_a_call(self):
        before = timezone.now()
        self.client.get("/remind/")
        self.client.get("/remind/")
        self.assertSent("invoices", order=8)
        with self.captureMessages() as sent:
            self.client.get("/remind/")
        first, second, invoice, search, offer = sent
        self.assertEqual(first.delay, timedelta(hours=1))
        self.assertGreater(second.deliver_at - before, timedelta(days=2))
        self.assertEqual((invoice.priority, search.unique), (10, "order-8"))
        self.assertGreater(offer["expires"], timezone.now().isoformat())
        lines = self.drained()
        self.assertEqual(lines.count("order 8 goes into the index"), 1)
        self.assertEqual(lines.count("an offer for user 7"), 3)
        self.assertNotIn("a reminder for user 7", lines)
        self.assertEqual(self.drained(delayed=True).count("a reminder for user 7"), 6)

    def test_an_expired_offer_is_not_made(self):
        Channel("offers").send({"user": 7, "expires": (timezone.now() - timedelta(seconds=1)).isoformat()})
        self.assertEqual(self.drained(), [])

    def test_a_failure_is_retried_and_ends_as_a_dead_letter(self):
        backoff = options("suppliers").backoff
        self.assertEqual([backoff(attempt) for attempt in (1, 2, 3, 4)], [20, 40, 80, 160])
        Channel("suppliers").send({"order": 7})
        supplier = broken()
        with mock.patch.object(consumers, "call_supplier", supplier), self.assertLogs("dbchannels.worker"):
            self.drain(delayed=True, raise_exception=False)
        self.assertEqual(supplier.call_count, 5)
        self.assertEqual(self.dead_letters(), 1)

    def test_a_failure_that_passes_is_repaired_by_a_retry(self):
        Channel("suppliers").send({"order": 7})
        once = mock.Mock(side_effect=[consumers.ShopIsAway("closed"), "fine"])
        with mock.patch.object(consumers, "call_supplier", once), self.assertLogs("dbchannels.worker"):
            lines = self.drained(delayed=True, raise_exception=False)
        self.assertEqual(lines, ["fine at attempt 2"])

    def test_a_failure_for_good_is_not_retried(self):
        Channel("suppliers").send({"order": 7})
        gone = mock.Mock(side_effect=consumers.NoSuchOrder)
        with mock.patch.object(consumers, "call_supplier", gone):
            self.assertEqual(self.drained(delayed=True), ["There is no order 7"])
        self.assertEqual((gone.call_count, self.dead_letters()), (1, 0))

    def test_a_consumer_chooses_its_delay(self):
        Channel("stock").send({"order": 7})
        with mock.patch.object(consumers, "call_supplier", broken()):
            self.drain()
            self.assertEqual(self.assertSent("stock", tries=2).delay, timedelta(seconds=30))
            with self.assertLogs("dbchannels.worker"):
                self.drain(delayed=True, raise_exception=False)
            self.assertSent("stock", tries=11)
            self.assertNotSent("stock", tries=12)

    def test_a_payment_is_booked_with_what_it_sends(self):
        account = Account.objects.create()
        self.assertTrue(options("payments").atomic)
        Channel("payments").send({"account": account.pk, "amount": 5})
        self.drain()
        self.assertSent("reminders", user=account.pk)
        account.refresh_from_db()
        self.assertEqual(account.balance, 5)

    def test_an_import_goes_on_in_another_message(self):
        Channel("imports").send({"start": 0, "lines": 3})
        clock = mock.Mock(side_effect=[0, 1, 2, 3601, 4000, 4001])
        with mock.patch.object(consumers.time, "monotonic", clock):
            consumers.import_catalogue(mock.MagicMock(**self.message(start=0, lines=3)))
        self.assertSent("imports", start=2, lines=3)
        self.assertEqual(self.drained(), ["line 0", "line 1", "line 2", "line 2"])

    def message(self, **content):
        """Return the attributes of a stand-in for a message."""
        return {"content": content, "__getitem__.side_effect": content.__getitem__}

    def test_the_schedules(self):
        self.assertEqual(str(options("newsletter").interval()), "0 7 * * 1")
        self.assertEqual(str(options("cleanup").interval()), "600 s")
        Channel("newsletter").send({"scheduled_at": "2026-11-30T07:00:00+00:00"})
        Channel("cleanup").send({})
        self.assertEqual(self.drained(), ["the newsletter of 2026-11-30T07:00:00+00:00", "cleaned up"])

    def test_reports_that_are_due(self):
        now = timezone.now()
        due = Report.objects.create(every=timedelta(days=1), next_at=now - timedelta(minutes=1))
        Report.objects.create(every=timedelta(days=1), next_at=now + timedelta(minutes=1))
        Channel("reports.due").send({})
        self.assertEqual(self.drained(), [f"report {due.pk}"])
        due.refresh_from_db()
        self.assertGreater(due.next_at, now + timedelta(hours=23))

    def test_a_page_follows_an_export(self):
        self.assertFalse(self.client.ws("/exports/1/live/").accepted)
        pk = self.client.get("/exports/start/").json()["export"]
        page = self.client.ws(f"/exports/{pk}/live/")
        self.assertEqual(page.receive(), "waiting")
        self.drain()
        self.assertEqual(page.receive_all(), ["running", *["progress"] * 3, "done"])

    def test_an_export_that_fails_for_good_says_why(self):
        pk = self.client.get("/exports/start/").json()["export"]
        real = consumers.change

        def change(export, **fields):
            if "lines" in fields:
                raise OSError("The disk is full.")
            return real(export, **fields)

        with mock.patch.object(consumers, "change", change), self.assertLogs("dbchannels.worker"):
            self.drain(delayed=True, raise_exception=False)
        found = self.client.get(f"/exports/{pk}/").json()
        self.assertEqual((found["state"], found["result"]), ("failed", "OSError: The disk is full."))

    def test_an_export_is_cancelled_before_it_begins(self):
        pk = self.client.get("/exports/start/").json()["export"]
        self.assertEqual(self.client.get(f"/exports/{pk}/cancel/").json(), {"cancelled": True})
        self.drain()
        found = self.client.get(f"/exports/{pk}/").json()
        self.assertEqual((found["state"], found["lines"]), ("cancelled", 0))

    def test_an_export_is_cancelled_while_it_runs(self):
        pk = self.client.get("/exports/start/").json()["export"]
        real = consumers.change

        def change(export, **fields):
            if fields.get("lines") == 3:
                self.client.get(f"/exports/{pk}/cancel/")
            return real(export, **fields)

        with mock.patch.object(consumers, "change", change):
            self.drain()
        export = Export.objects.get(pk=pk)
        self.assertEqual((export.state, export.lines), ("cancelled", 2))
        self.assertEqual(self.client.get(f"/exports/{pk}/cancel/").json(), {"cancelled": False})

    def test_a_view_waits_for_the_result(self):
        waiting = self.client.get("/preview/?text=tea").later
        self.drain()
        self.assertEqual(waiting.receive().content, b'{"preview": "TEA"}')

    def test_a_chain(self):
        Channel("orders.charge").send({"order": 7})
        self.assertEqual(self.drained(), ["shipped parcel-7 paid by charge-7"])

    def test_a_chord(self):
        self.client.get("/thumbnails/")
        album = Album.objects.get()
        lines = self.drained()
        self.assertEqual(len(lines), 4)
        self.assertEqual(lines[-1], f"album {album.pk} is complete")

    def test_a_rate(self):
        self.assertEqual(options("letters").concurrency, 1)
        Letter.objects.bulk_create(Letter(address=f"u{number}@site.example") for number in range(101))
        for sent in (100, 101, 101):
            Channel("letters").send({})
            self.drain()
            self.assertEqual(len(mail.outbox), sent)
