/*
 * What skep and the program skep-slirp agree on.
 */
#ifndef BACKEND_NET_SLIRP_H
#define BACKEND_NET_SLIRP_H

#define SLIRP_PROGRAM "skep-slirp" /* arguments: "open" or "closed", hostfwd's text */
#define SLIRP_SOCKET 3		   /* the file descriptor it finds its socket at */

#endif
