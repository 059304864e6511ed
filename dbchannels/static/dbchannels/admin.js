// An act that has more to do goes on by itself. Without this script its button does.
document.getElementById("dbchannels-continue").requestSubmit();
