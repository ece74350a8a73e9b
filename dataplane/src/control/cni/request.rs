//! A call as it comes from the plugin: see [`slipway_cni::ROUTE`].

use slipway_cni::{CniError, Code};

use super::call::Environment;

/// Takes a call apart: environment, and configuration.
pub fn split(body: &[u8]) -> Result<(Environment, &[u8]), CniError> {
    let bad = |what: &str| {
        let message = format!("The call is not what slipway-cni sends: {what}");
        CniError::new(
            Code::Refused,
            message,
            "Install slipway-cni and slipwayd of one release, and restart slipwayd",
        )
    };
    let mut environment = Environment::new();
    let mut rest = body;
    loop {
        let end = rest.iter().position(|byte| *byte == 0);
        let (variable, behind) =
            rest.split_at(end.ok_or_else(|| bad("its environment has no end"))?);
        rest = &behind[1..];
        if variable.is_empty() {
            return Ok((environment, rest));
        }
        let equals = variable.iter().position(|byte| *byte == b'=');
        let (name, value) =
            variable.split_at(equals.ok_or_else(|| bad("a variable has no value"))?);
        let name = std::str::from_utf8(name).map_err(|_| bad("a variable's name is not UTF-8"))?;
        environment.insert(name.to_owned(), value[1..].to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_and_configuration_are_told_apart() {
        let (environment, config) = split(b"A=1\0B==\xff\0C=\0\0{\0}").expect("good");
        let expected = [("A", &b"1"[..]), ("B", b"=\xff"), ("C", b"")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_vec()));
        assert_eq!(environment, Environment::from(expected));
        assert_eq!(config, b"{\0}");
        assert_eq!(split(b"\0"), Ok((Environment::new(), &b""[..])));
    }

    #[test]
    fn what_is_no_call_is_refused() {
        for body in [&b""[..], b"A=1", b"A=1\0", b"A\0\0", b"\xff=1\0\0", b"{\"a\":1}"] {
            let error = split(body).expect_err("refused");
            assert_eq!(error.code, Code::Refused, "{error:?}");
        }
    }
}
