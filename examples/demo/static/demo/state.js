// The line on a page that says how its connection is.

const WORDS = {
  connecting: "Connecting…",
  open: "Connected",
  waiting: "Offline. Coming back…",
  closed: "Not connected",
};

// Say in an element of the class "state" how the connection is.
export function showState(element, state) {
  if (element.dataset.state !== state) element.textContent = WORDS[state];
  element.dataset.state = state;
}

// Say there how a socket is, from now on, and tell the listener too.
export function followState(element, socket, listener = () => {}) {
  for (const state of Object.keys(WORDS)) {
    socket.on(state, () => {
      showState(element, state);
      listener(state);
    });
  }
}
