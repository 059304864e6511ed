from dbchannels import Channel, Group

chatroom = Group("chatroom")


def ws_connect(path, send_channel, **kwargs):
    chatroom.add(send_channel)


def ws_receive(channel, send_channel, content, binary, **kwargs):
    # The chat is text only
    if binary:
        return
    # Everybody gets it, the sender as well
    for channel in chatroom.channels():
        Channel(channel).send(content=content, binary=False)


def ws_disconnect(channel, send_channel, **kwargs):
    chatroom.discard(send_channel)
    # The set in Redis kept whoever was connected when the server
    # crashed. A group does not: this runs for them as well, and even
    # without it they would be taken out.
