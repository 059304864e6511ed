// The line on a page that says how its connection is.

const WORDS = {
  connecting: "Connecting…",
  open: "Connected",
  waiting: "Offline. Coming back…",
  closed: "Not connected",
};

// Say in an element of the class "state" how a socket is, from now on; then tell the listener.
export function showState(element, socket, listener) {
  for (const state of Object.keys(WORDS)) {
    socket.on(state, () => {
      if (element.dataset.state !== state) element.textContent = WORDS[state];
      element.dataset.state = state;
      listener(state);
    });
  }
}
