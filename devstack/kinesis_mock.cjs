// Loaded into kinesis-mock before its own code (node --require). Two things it has no option for:
//
// 1. It listens on this machine only.
// 2. SIGTERM ends it at once, data written. By itself it waits up to 30 s while any client keeps a connection
//    open, takes records meanwhile, and writes its data last: whoever loses patience and kills it loses all.
//    Here: SIGTERM -> take no connection, end those there are -> its own handler: answer, write the data, exit.
"use strict";
const net = require("net");

const HOST = "127.0.0.1";
const SETTLE_MS = 100; // its own code must have seen the connections end
const sockets = new Set();
let stopping = false;

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  this.prependListener("connection", (socket) => {
    if (stopping) return socket.destroy();
    sockets.add(socket);
    return socket.once("close", () => sockets.delete(socket));
  });
  return listen.call(this, port, HOST, rest.pop());
};

const on = process.on;
process.on = process.addListener = function (name, handler) {
  if (name !== "SIGTERM" && name !== "SIGINT") return on.call(this, name, handler);
  return on.call(this, name, () => {
    stopping = true;
    for (const socket of sockets) socket.push(null); // end of input, as if the client had closed
    setTimeout(handler, SETTLE_MS);
  });
};
