"""The console: what the command line and the web page talk to; served on 8470 and on the socket."""
